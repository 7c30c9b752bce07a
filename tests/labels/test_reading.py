"""Taxonomies from a user's YAML: accepted content, substitutes for missing texts, and errors."""

import json
from dataclasses import replace

import pytest

from intclip.backbones import load_backbone
from intclip.errors import IntclipError, TaxonomyError
from intclip.labels import FORMS, load_taxonomy
from intclip.labels.advice import advise
from intclip.labels.writing import taxonomy_yaml
from intclip.methods.registry import build_method

FULL = """
name: pets
source: made for a test
level: animal
parents:
  family: {Dogs: Furry, Cats: Furry, Health: Health}
  kingdom: [Furry, Health]
subsets:
  size: {small: [Siamese, Health], large: [Dogge]}
classes:
  - name: Dogge
    aliases: [great dane, gd]
    parent: Dogs
    definition: A large dog.
    sentences: {3-5: A very large dog, 6-9: A very large dog running over grass}
  - name: Siamese
    parent: Cats
    sentences: {3-5: A slender cat, 6-9: A slender cat sleeping on a sofa}
  - name: Health
    parent: Health
    sentences: {3-5: An animal doctor, 6-9: An animal doctor looks at a rabbit}
"""


def write(tmp_path, text, name="my.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_of_names_is_enough(tmp_path):
    names = [f"intent {i}" for i in range(10)]
    taxonomy = load_taxonomy(write(tmp_path, "".join(f"- {name}\n" for name in names)))
    assert taxonomy.name == "my"
    assert taxonomy.names == tuple(names)
    assert taxonomy.levels == {"class": tuple(names)}
    assert taxonomy.parents == {}
    assert taxonomy.sentences("template") == [f"An image showing {name}" for name in names]
    for form in set(FORMS) - {"template"}:
        assert taxonomy.sentences(form) == names
    assert taxonomy.written == ()


@pytest.mark.parametrize(
    "text",
    [
        "sunset: The sun goes down over the sea\ndogs:\n",
        "- sunset: The sun goes down over the sea\n- dogs\n",
        "classes:\n- {name: sunset, sentence: The sun goes down over the sea}\n- dogs\n",
        "classes:\n  sunset: The sun goes down over the sea\n  dogs:\n",
    ],
)
def test_short_ways_to_give_a_sentence(tmp_path, text):
    taxonomy = load_taxonomy(write(tmp_path, text))
    assert taxonomy.names == ("sunset", "dogs")
    for form in ("3-5", "6-9", "11-15", "16-20"):
        assert taxonomy.sentences(form) == ["The sun goes down over the sea", "dogs"]


def test_labels_without_a_file(tmp_path):
    listed = load_taxonomy(["going out", "pets", "food"])
    assert listed.names == ("going out", "pets", "food")
    assert load_taxonomy(("going out", "pets", "food")) == load_taxonomy(" going out,pets, food,") == listed
    file = tmp_path / "a,b"
    file.write_text("- of a file\n")
    assert load_taxonomy(str(file)).names == ("of a file",)
    with_sentences = {"pets": "A dog or cat that someone loves"}
    assert load_taxonomy(with_sentences) == replace(
        load_taxonomy(write(tmp_path, json.dumps(with_sentences))), name="custom"
    )


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({"b", "a"}, "set"),
        (3, "int"),
        ([], "the given labels"),
        (["a", "A"], "'A'"),
        ("a, a", "'a'"),
        ("a,b.yaml", r"a,b\.yaml"),
        ("x" * 5000, "xxx"),
        (b"a", "bytes"),
    ],
)
def test_what_is_not_labels_is_refused(source, match):
    with pytest.raises(TaxonomyError, match=match):
        load_taxonomy(source)


def test_a_full_file(tmp_path):
    taxonomy = load_taxonomy(write(tmp_path, FULL))
    assert taxonomy.levels == {
        "animal": ("Dogge", "Siamese", "Health"),
        "family": ("Dogs", "Cats", "Health"),
        "kingdom": ("Furry", "Health"),
    }
    assert taxonomy.parents["Siamese"] == ("Cats", "Furry")
    assert taxonomy.parents["Health"] == ("Health", "Health")
    assert taxonomy.index("Great Dane") == 0
    assert taxonomy.definitions == {"Dogge": "A large dog."}
    assert taxonomy.subsets["size"]["small"] == ("Siamese", "Health")
    assert taxonomy.written == ("3-5", "6-9")
    # missing forms use the nearest existing one
    assert taxonomy.sentences("11-15") == taxonomy.sentences("16-20") == taxonomy.sentences("6-9")
    assert taxonomy.sentences("consolidated")[1] == "Siamese, Cats, Furry"
    assert advise(taxonomy) == [
        "no sentences of 11-15, 16-20 words, so other texts are used; write them, or use `intclip labels integrate`"
    ]


def test_a_free_sentence_goes_before_the_nearest_form(tmp_path):
    text = "- {name: a, sentence: free words, sentences: {3-5: one two three}}\n- {name: b, sentences: {3-5: b c d}}\n"
    taxonomy = load_taxonomy(write(tmp_path, text))
    assert taxonomy.sentences("11-15") == ["free words", "b c d"]


def test_parents_without_declared_levels_make_one(tmp_path):
    taxonomy = load_taxonomy(
        write(tmp_path, "- {name: a, parent: x}\n- {name: b, parent: y}\n- {name: c, parent: x}\n")
    )
    assert taxonomy.levels == {"class": ("a", "b", "c"), "group": ("x", "y")}
    assert taxonomy.parents["c"] == ("x",)


def test_listed_sentences(tmp_path):
    taxonomy = load_taxonomy(write(tmp_path, "classes: [a, b]\nsentences:\n  3-5: [one two three, four five six]\n"))
    assert taxonomy.sentences("3-5") == ["one two three", "four five six"]


def test_json_and_a_bundles_dict_are_read_too(tmp_path):
    taxonomy = load_taxonomy("sentiment3")
    assert load_taxonomy(write(tmp_path, json.dumps(taxonomy.to_dict()), "t.json")) == taxonomy
    assert load_taxonomy(write(tmp_path, '["a", "b"]', "l.json")).names == ("a", "b")


def test_what_is_written_is_read_back(tmp_path):
    from intclip.labels import builtin_taxonomies

    free = "- {name: a, sentence: free words}\n- {name: b, sentences: null}\n"
    texts = [
        FULL,
        free,
        "- {name: x, parent: x2}\n",
        "parents: {group: [y, x]}\nclasses: {a: {parent: x}, b: {parent: y}}",
    ]
    taxonomies = [load_taxonomy(name) for name in builtin_taxonomies()]
    taxonomies += [load_taxonomy(write(tmp_path, text)) for text in texts]
    for taxonomy in taxonomies:
        again = load_taxonomy(write(tmp_path, taxonomy_yaml(taxonomy, ["written by a test"]), f"{taxonomy.name}.yaml"))
        assert again == taxonomy


LONG = " ".join(["wonderful"] * 80)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "classes is empty"),
        ("- a\n- b\n- A\n", "class 3 'A'.*'a'"),
        ("a: one\nb: two\na: three\n", "line 3, column 1.*'a'"),
        ("- pets\n\t- x\n", "line 2, column 1: .*tab"),
        ("- a\n- pe\0ts\n", "line 2: .*0x0000"),
        ("clases:\n- {name: x}\n", "'clases'.*`classes`"),
        ("clases: {x: a dog, y: a cat}\n", "'clases'.*`classes`"),
        ("pets: [a, b]\nfood: a\n", "'pets'.*`classes`"),
        ("- {name: x, sentence: [a, b]}\n", "class 1 'x': sentence is"),
        ("- {name: a, aliases: [b]}\n- b\n", "class 1 'a': alias 'b'"),
        ("- a\n- yes\n", "class 2: name is True"),
        ("- ''\n", "class 1 '': name is empty"),
        ('- "\\ud800"\n', r"class 1 .*name is '\\ud800'"),
        ("- {name: a, aliases: 3}\n", "class 1 'a': aliases is 3"),
        ("- {name: a, aliases: {b: c}}\n", "class 1 'a': aliases is {'b': 'c'}"),
        ("classes: [a]\nsubsets: [a]\n", r"subsets is \['a'\].*`part: "),
        ("classes: [sea]\nsubsets: {x: {easy: sea}}\n", "subsets: x: easy is 'sea'.*`part: "),
        ("- {nme: a, parent: b}\n", "class 1 has no name.*`name:`"),
        ("- {name: a, sentnce: b}\n", "class 1 'a': .*sentnce.* sentence,"),
        ("level: x\nsource: y\n", "`classes`"),
        ("classes: {}\n", "classes is empty"),
        ("classes: !!set {a, b}\n", "classes is a set"),
        ("classes: 7\n", "classes is 7"),
        ("classes: [a]\nexclusive: maybe\n", "exclusive is 'maybe'"),
        # cycles
        ("- {name: a, parent: b}\n- {name: b, parent: a}\n", "a → b → a"),
        ("- {name: a, parent: a}\n", "a → a"),
        ("parents: {g: {x: y, y: x}}\nclasses: [{name: a, parent: x}, {name: b, parent: y}]", "x → y → x"),
        # orphans
        ("- {name: a, parent: x}\n- b\n", "class 2 'b'.*level group: one of 'x'"),
        ("parents: {g: [x]}\nclasses: [{name: a, parent: x}, {name: b, parent: z}]", "'z'.*level g"),
        ("parents: {g: {x: top, y: }, h: [top]}\nclasses: [{name: a, parent: x}, {name: b, parent: y}]", "g 'y'"),
        ("parents: {g: {x: top}}\nclasses: [{name: a, parent: x}]", "g 'x'.*'top'"),
        ("parents: {g: [x, y]}\nclasses: [{name: a, parent: x}]", "g 'y'"),
        ("parents: {g: [x, x]}\nclasses: [{name: a, parent: x}]", "parents: g .*'x'"),
        ("parents: {class: [x]}\nclasses: [{name: a, parent: x}]", "'class'"),
        ("parents: [x]\nclasses: [{name: a, parent: x}]", r"parents is \['x'\].*`level:`"),
        ("parents: {g: []}\nclasses: [{name: a, parent: x}]", "parents: g is empty"),
        ("parents: {g: [7]}\nclasses: [{name: a, parent: x}]", "parents: g is 7"),
        # numbers and lengths of sentences
        ("classes: [a, b]\nsentences: {3-5: [one two three]}", "sentences: 3-5 has 1 .* 2 classes"),
        ("- {name: a, sentences: {3-5: one two three}}\n- b\n", "3-5 .*'b'"),
        ("- {name: a, sentences: {3-5: one two}}\n", "class 1 'a': .*3-5 .* 2 words"),
        ("- {name: a, sentences: {4-5: one two three four}}\n", "class 1 'a': sentences: 4-5 .*3-5"),
        ("classes: [a, b]\nsentences: {3-5: [one two three, One two three]}", "class 2 'b': .*3-5 .*'a'"),
        # subsets
        ("classes: [a, b]\nsubsets: {s: {x: [a], y: [c]}}", "subsets: s: 'c'"),
        ("classes: [a, b]\nsubsets: {s: {x: [a]}}", "subsets: s: 'b'"),
        ("classes: [a, b]\nsubsets: {s: {x: [a, b], y: [b]}}", "subsets: s: .*'b'"),
        # not YAML, or not plain YAML
        ("- [a\n", "line 2, column 1: .* line 1"),
        ("- !!python/object/apply:os.system [echo]\n", "python/object"),
        ("a: &x [1]\nb: *x\n", "aliases"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(TaxonomyError, match=message) as caught:
        load_taxonomy(path)
    assert str(caught.value).startswith(str(path)), caught.value
    assert "\n" not in str(caught.value)


def test_long_sentences_are_for_the_text_tower_to_refuse(tmp_path):
    taxonomy = load_taxonomy(write(tmp_path, f"a: {LONG}\n"))
    assert any("'a' has 80 CLIP tokens" in line for line in advise(taxonomy))
    for count in (46, 47):  # beside 16 context vectors, start and end, in SigLIP's 64
        sentence = " ".join(["dog"] * count)
        lines = advise(load_taxonomy(write(tmp_path, f"a: {sentence}\n")))
        assert any(f"'a' has {count} CLIP tokens" in line for line in lines) == (count > 46)
    lite, clip = load_backbone("lite"), load_backbone("RN50@random")
    build_method("zero_shot", lite, taxonomy, {})  # with a context of 256 tokens
    with pytest.raises(IntclipError, match=r"82.*77"):
        build_method("zero_shot", clip, taxonomy, {})


def test_no_such_taxonomy(tmp_path):
    with pytest.raises(TaxonomyError, match=r"'intentonmy'.*did you mean 'intentonomy'"):
        load_taxonomy("intentonmy")
    with pytest.raises(TaxonomyError, match="ekman6"):
        load_taxonomy(tmp_path / "nowhere.yaml")


def test_not_utf8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("- Größe\n".encode("latin-1"))
    with pytest.raises(TaxonomyError, match="UTF-8"):
        load_taxonomy(path)


def test_advice_on_sentences_that_hardly_differ(tmp_path):
    two = "a red dog on green grass outside, a red dog on green grass inside"
    text = f"classes: [a, b]\nsource: s\nsentences: {{6-9: [{two}]}}"
    assert any("nearly equal" in line for line in advise(load_taxonomy(write(tmp_path, text))))
