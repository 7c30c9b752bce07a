"""Taxonomies from a user's YAML: what is taken, what stands in for missing words, what is refused and how."""

import json

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
    # the missing forms take the nearest that was written
    assert taxonomy.sentences("11-15") == taxonomy.sentences("16-20") == taxonomy.sentences("6-9")
    assert taxonomy.sentences("consolidated")[1] == "Siamese, Cats, Furry"
    assert advise(taxonomy) == [
        "no sentences of 11-15, 16-20 words: other words stand in for them; write them, or have them written with "
        "`intclip labels integrate`"
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
        ("", "classes must be a list of names"),
        ("- a\n- b\n- A\n", "class 3 'A': the name is there twice \\(also 'a'\\); rename one"),
        ("a: one\nb: two\na: three\n", "my.yaml: line 3, column 1: key 'a' is given twice; correct the YAML there$"),
        ("- pets\n\t- x\n", "my.yaml: line 2, column 1: there is a tab; YAML is indented by blanks; correct"),
        ("- a\n- pe\0ts\n", "my.yaml: line 2: character 0x0000 has no place in YAML; remove it"),
        (
            "clases:\n- {name: x}\n",
            "my.yaml: 'clases' holds a list.*did you mean `classes`",
        ),
        ("clases: {x: a dog, y: a cat}\n", "my.yaml: there is no entry 'clases'; did you mean `classes`"),
        ("pets: [a, b]\nfood: a\n", "my.yaml: 'pets' holds a list, .*; list the classes under `classes`"),
        ("- {name: x, sentence: [a, b]}\n", "class 1 'x': sentence is .*, not a text; write one line of words"),
        ("- {name: a, aliases: [b]}\n- b\n", "class 1 'a': alias 'b' also means 'b'; keep it at one of them"),
        ("- a\n- yes\n", "class 2: name is True, which YAML does not read as text; put it in quotes"),
        ("- ''\n", "class 1 '' is empty; give it a name"),
        ('- "\\ud800"\n', r"class 1: name is '\\ud800', which holds half of a character; write it anew"),
        ("- {name: a, aliases: 3}\n", "class 1 'a': aliases is 3; write one name, or a list of names"),
        ("- {name: a, aliases: {b: c}}\n", "class 1 'a': aliases is {'b': 'c'}; write one name, or a list of names"),
        ("classes: [a]\nsubsets: [a]\n", "my.yaml: subsets must be lines of `name:` with lines of `part: "),
        (
            "classes: [sea]\nsubsets: {x: {easy: sea}}\n",
            "subsets: x must be lines of `part:` with a list of class names",
        ),
        ("- {nme: a, parent: b}\n", "class 1 has no name; give it a `name:`"),
        ("- {name: a, sentnce: b}\n", "class 1 'a': unknown entry sentnce; known are: name, parent"),
        ("level: x\nsource: y\n", "there is no `classes`"),
        ("classes: {}\n", "there are no classes"),
        ("classes: 7\n", "classes must be a list of names"),
        ("classes: [a]\nexclusive: maybe\n", "exclusive is 'maybe'; write true or false"),
        # cycles
        ("- {name: a, parent: b}\n- {name: b, parent: a}\n", "parents go round in a cycle: a → b → a; cut one"),
        ("- {name: a, parent: a}\n", "cycle: a → a"),
        ("parents: {g: {x: y, y: x}}\nclasses: [{name: a, parent: x}, {name: b, parent: y}]", "cycle: x → y → x"),
        # orphans
        ("- {name: a, parent: x}\n- b\n", "class 2 'b' is an orphan; give it a parent in level group: one of 'x'"),
        (
            "parents: {g: [x]}\nclasses: [{name: a, parent: x}, {name: b, parent: z}]",
            "its parent 'z' is not in level g",
        ),
        (
            "parents: {g: {x: top, y: }, h: [top]}\nclasses: [{name: a, parent: x}, {name: b, parent: y}]",
            "g 'y' is an orph",
        ),
        (
            "parents: {g: {x: top}}\nclasses: [{name: a, parent: x}]",
            "g 'x' is an orphan: its parent 'top' is in no level",
        ),
        ("parents: {g: [x, y]}\nclasses: [{name: a, parent: x}]", "g 'y' has nothing under it"),
        ("parents: {g: [x, x]}\nclasses: [{name: a, parent: x}]", "parents: g: the name 'x' is there twice"),
        ("parents: {class: [x]}\nclasses: [{name: a, parent: x}]", "two levels are called 'class'"),
        ("parents: [x]\nclasses: [{name: a, parent: x}]", "parents must be lines of `level:`"),
        # numbers and lengths of sentences
        (
            "classes: [a, b]\nsentences: {3-5: [one two three]}",
            "sentences: 3-5 has 1 sentences for 2 classes; write one for",
        ),
        (
            "- {name: a, sentences: {3-5: one two three}}\n- b\n",
            "form 3-5 has 1 sentences for 2 classes; write the one of 'b'",
        ),
        ("- {name: a, sentences: {3-5: one two}}\n", "class 1 'a': its 3-5 sentence has 2 words .*write 3 to 5 words"),
        (
            "- {name: a, sentences: {4-5: one two three four}}\n",
            "class 1 'a': there is no form '4-5'; write sentences for 3-5",
        ),
        (
            "classes: [a, b]\nsentences: {3-5: [one two three, One two three]}",
            "class 2 'b': its 3-5 sentence is that of 'a'",
        ),
        # subsets
        ("classes: [a, b]\nsubsets: {s: {x: [a], y: [c]}}", "subsets: s: 'c'"),
        ("classes: [a, b]\nsubsets: {s: {x: [a]}}", "subsets: s: 'b' is in no part"),
        ("classes: [a, b]\nsubsets: {s: {x: [a, b], y: [b]}}", "subsets: s: 'b' is there twice"),
        # no YAML, or more than plain YAML
        (
            "- [a\n",
            "my.yaml: line 2, column 1: .*got '<stream end>' .while parsing a flow sequence that begins in line 1",
        ),
        ("- !!python/object/apply:os.system [echo]\n", "my.yaml: .*could not determine a constructor"),
        ("a: &x [1]\nb: *x\n", "aliases are not allowed"),
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
    lite, clip = load_backbone("lite"), load_backbone("RN50@random")
    build_method("zero_shot", lite, taxonomy, {})  # which reads 256 tokens
    with pytest.raises(IntclipError, match="82 tokens, more than 77"):
        build_method("zero_shot", clip, taxonomy, {})


def test_no_such_taxonomy(tmp_path):
    with pytest.raises(TaxonomyError, match="no taxonomy 'intentonmy': did you mean 'intentonomy'"):
        load_taxonomy("intentonmy")
    with pytest.raises(TaxonomyError, match="must be a YAML file or one of: ekman6"):
        load_taxonomy(tmp_path / "nowhere.yaml")


def test_not_utf8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("- Größe\n".encode("latin-1"))
    with pytest.raises(TaxonomyError, match=r"is not UTF-8 .*save it as UTF-8"):
        load_taxonomy(path)


def test_advice_on_sentences_that_hardly_differ(tmp_path):
    two = "a red dog on green grass outside, a red dog on green grass inside"
    text = f"classes: [a, b]\nsource: s\nsentences: {{6-9: [{two}]}}"
    assert any("nearly the same" in line for line in advise(load_taxonomy(write(tmp_path, text))))
