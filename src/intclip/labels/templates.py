"""Templates around the words of a class; "{}" stands for the words."""

from intclip.labels.taxonomy import Taxonomy

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "photo": ("a photo depicting {}.",),
    "ensemble": (
        "{}",
        "a photo of {}.",
        "a photo depicting {}.",
        "a photo that expresses {}.",
        "a photo taken to show {}.",
        "a photo shared because of {}.",
        "a picture about {}.",
    ),
}
"""Template sets by name. "photo" is IntCLIP's."""
AUTO = "auto"
"""Names go into the set "ensemble", sentences stay "plain"."""


def class_texts(taxonomy: Taxonomy, form: str, templates: str | tuple[str, ...] = AUTO) -> list[list[str]]:
    """Return the texts of each of the K classes, whose features are averaged.

    Args:
        taxonomy: K classes.
        form: Form of their words; a class without sentences has its name.
        templates: `AUTO`, name of a set, or templates.
    """
    texts = []
    for name, words in zip(taxonomy.names, taxonomy.sentences(form), strict=True):
        chosen = ("ensemble" if words == name else "plain") if templates == AUTO else templates
        around = TEMPLATES[chosen] if isinstance(chosen, str) else chosen
        texts.append([template.replace("{}", words) for template in around])
    return texts
