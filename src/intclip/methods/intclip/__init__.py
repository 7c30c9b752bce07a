"""IntCLIP (ECCV 2024)."""

from intclip.methods.aggregation import SightAssistedAggregation

__all__ = ["SightAssistedAggregation"]
