"""HTML reports on photos and models, and contact sheets."""
