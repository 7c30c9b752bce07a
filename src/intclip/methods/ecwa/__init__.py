"""A loss that knows which emotions are confused and which are opposite (2021)."""
