"""Paired measurements against a plain reference; run each as `python -m benchmarks.NAME` from the repository root."""
