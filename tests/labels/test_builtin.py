"""The packaged taxonomies: content, and sentences of every form."""

import pytest

from intclip.backbones import tokenize
from intclip.labels import FORMS, builtin_taxonomies, load_taxonomy
from intclip.labels.advice import advise
from intclip.labels.lengths import WORD_RANGES, count_clip_tokens, count_words
from intclip.labels.reading import parse_taxonomy

SIZES = {
    "ekman6": (6, 2),
    "intentonomy": (28, 15, 9),
    "mdid-contextual": (3,),
    "mdid-intent": (7,),
    "mdid-semiotic": (3,),
    "metmeme-intent": (5,),
    "mikels8": (8, 2),
    "openmoji": (69, 7),
    "persuasion": (22, 3),
    "proxy-intents": (16, 9),
    "sentiment3": (3,),
}


def test_all_are_there():
    assert builtin_taxonomies() == tuple(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_sources(name):
    taxonomy = load_taxonomy(name)
    assert taxonomy.name == name
    assert tuple(len(names) for names in taxonomy.levels.values()) == SIZES[name]
    assert taxonomy.source
    assert taxonomy.written == tuple(WORD_RANGES)
    assert advise(taxonomy) == []


@pytest.mark.parametrize("name", SIZES)
def test_sentences(name):
    """One per class and form: distinct, in the word range, short enough for 16 contexts in a tower of 64 tokens."""
    taxonomy = load_taxonomy(name)
    assert tuple(taxonomy.sentence_forms) == FORMS
    for form in FORMS:
        sentences = taxonomy.sentences(form)
        assert len(sentences) == len(taxonomy)
        assert len({s.casefold() for s in sentences}) == len(taxonomy)
        for sentence in sentences:
            assert count_clip_tokens(sentence) + 16 <= 64, sentence
            if form in WORD_RANGES:
                least, most = WORD_RANGES[form]
                assert least <= count_words(sentence) <= most, sentence
                assert sentence[0].isupper(), sentence
    assert taxonomy.sentences("fine") == list(taxonomy.names)


def test_the_template_names_a_class_and_its_parent():
    taxonomy = load_taxonomy("intentonomy")
    name, parent = taxonomy.names[0], taxonomy.parents[taxonomy.names[0]][0]
    assert taxonomy.sentences("template")[0] == f"An image showing {parent}, specifically {name}"
    flat = parse_taxonomy({"classes": ["joy", "awe"]}, "here")
    assert flat.sentences("template") == ["An image showing joy", "An image showing awe"]


@pytest.mark.parametrize("name", SIZES)
def test_consolidated_words_are_the_levels(name):
    taxonomy = load_taxonomy(name)
    joined = [", ".join((n, *taxonomy.parents.get(n, ()))) for n in taxonomy.names]
    assert taxonomy.sentences("consolidated") == joined


def test_tokens_are_counted_as_the_text_tower_reads_them():
    for name in ("intentonomy", "persuasion"):
        taxonomy = load_taxonomy(name)
        for form in ("fine", "16-20"):
            sentences = taxonomy.sentences(form)
            counted = [count_clip_tokens(sentence) for sentence in sentences]
            assert (tokenize(sentences) != 0).sum(dim=1).tolist() == counted


def test_tokens_are_counted_of_the_text_that_the_tower_sees():
    assert count_clip_tokens("caf\u00c3\u00a9 &amp; bar") == count_clip_tokens("café & bar") == 5  # mended, unescaped
    assert count_clip_tokens("A  PHOTO\n") == count_clip_tokens("a photo") == 4


def test_intentonomy_is_the_published_tree():
    taxonomy = load_taxonomy("intentonomy")
    aliases = {0: "Attractive", 5: "EasyLife", 7: "FineDesignLearnArt-Arch", 19: "NatBeauty", 24: "SuccInOccupHavGdJob"}
    for index, alias in aliases.items():
        assert taxonomy.index(alias) == index
    for index, line in {
        5: ("Finances", "Financial and occupational success"),
        14: ("Health", "Health"),
        19: ("Appreciating beauty", "Openness to experience"),
        24: ("Occupational success", "Financial and occupational success"),
        26: ("Practical competence", "Ambition and ability"),
    }.items():
        assert taxonomy.parents[taxonomy.names[index]] == line
    difficulty = {part: [taxonomy.index(n) for n in names] for part, names in taxonomy.subsets["difficulty"].items()}
    assert difficulty["easy"] == [0, 7, 19]
    assert difficulty["hard"] == [2, 5, 8, 17, 20, 21, 23, 24, 25, 27]
    assert len(difficulty["medium"]) == 15
    content = {part: [taxonomy.index(n) for n in names] for part, names in taxonomy.subsets["content"].items()}
    assert content["object"] == [0, 3, 10, 11, 12, 16, 23]
    assert content["context"] == [7, 8]
    assert len(content["other"]) == 19


def test_emotions_have_their_polarity():
    mikels = load_taxonomy("mikels8")
    positive = {name for name, line in mikels.parents.items() if line == ("positive",)}
    assert positive == {"amusement", "awe", "contentment", "excitement"}
    assert load_taxonomy("ekman6").parents["surprise"] == ("positive",)


def test_which_exclude_each_other():
    exclusive = {name for name in SIZES if load_taxonomy(name).exclusive}
    assert exclusive == set(SIZES) - {"intentonomy", "proxy-intents", "persuasion"}


def test_persuasion_names_are_those_of_its_files():
    names = load_taxonomy("persuasion").names
    for name in ("Appeal to (Strong) Emotions", "Thought-terminating cliché", "Name calling/Labeling", "Transfer"):
        assert name in names
    assert load_taxonomy("persuasion").parents["Smears"] == ("Ethos",)
