"""Labels: taxonomies and their sentences, their integration by a language model, and how well sentences rank."""

from intclip.labels.reading import builtin_taxonomies, load_taxonomy
from intclip.labels.taxonomy import FORMS, Taxonomy

__all__ = ["FORMS", "Taxonomy", "builtin_taxonomies", "load_taxonomy"]
