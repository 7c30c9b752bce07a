"""Texts of a class: names in templates, sentences alone."""

from intclip.labels.reading import parse_taxonomy
from intclip.labels.templates import TEMPLATES, class_texts

LABELS = parse_taxonomy([{"name": "pets", "sentence": "A dog or a cat at home"}, {"name": "sunset"}], "mine")


def test_a_name_goes_into_all_templates_and_a_sentence_stays_alone():
    pets, sunset = class_texts(LABELS, "11-15")
    assert pets == ["A dog or a cat at home"]
    assert sunset[0] == "sunset"
    assert sunset == [template.replace("{}", "sunset") for template in TEMPLATES["ensemble"]]
    assert class_texts(LABELS, "fine")[0][1] == "a photo of pets."


def test_templates_may_be_given():
    assert class_texts(LABELS, "11-15", ("{}", "my {}")) == [
        ["A dog or a cat at home", "my A dog or a cat at home"],
        ["sunset", "my sunset"],
    ]
    assert class_texts(LABELS, "fine", "photo") == [["a photo depicting pets."], ["a photo depicting sunset."]]
