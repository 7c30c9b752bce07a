"""MCCL (2025): multi-grained compositional visual clues."""
