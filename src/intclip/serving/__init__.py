"""The REST API and the web app over one queue."""
