"""Pages and sheets about photos and models: the folder report, the model report, contact sheets."""
