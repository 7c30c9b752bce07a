"""Ridge regression on mean features of the frozen tower, in closed form."""
