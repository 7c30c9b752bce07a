"""Posts: photos with words, and heads that learn from hundreds of labelled ones."""

from intclip.posts.model import PostModel, fit_posts

__all__ = ["PostModel", "fit_posts"]
