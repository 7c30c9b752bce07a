"""Labels: taxonomies, their sentences, integration by a language model, and ranking scores."""

from intclip.labels.reading import builtin_taxonomies, load_taxonomy
from intclip.labels.taxonomy import FORMS, Taxonomy

__all__ = ["FORMS", "Taxonomy", "builtin_taxonomies", "load_taxonomy"]
