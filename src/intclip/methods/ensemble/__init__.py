"""Several methods in one, whose logits are averaged."""
