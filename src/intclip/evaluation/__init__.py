"""Evaluation: scores, reports, and the studies of the papers."""
