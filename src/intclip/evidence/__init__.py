"""Evidence for predictions: maps of photos, weights of words."""
