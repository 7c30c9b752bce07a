"""The Intentonomy baseline (2021)."""
