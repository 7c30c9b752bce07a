"""Tip-Adapter (ECCV 2022): the training photos as a cache over zero-shot classification, made multi-label."""
