"""Evaluation: scores, reports, calibration, saved predictions."""
