"""The web app (`intclip app`): a static page over the REST API."""
