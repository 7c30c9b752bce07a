"""A two-layer network with asymmetric loss on frozen features."""
