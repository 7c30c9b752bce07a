"""Intents from sentences alone, without training."""
