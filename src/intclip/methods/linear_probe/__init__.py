"""One linear layer on the frozen image embedding."""
