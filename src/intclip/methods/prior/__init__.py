"""The labels' frequencies, whatever the photo: the floor under every method."""
