"""An image tower with asymmetric loss (2021)."""
