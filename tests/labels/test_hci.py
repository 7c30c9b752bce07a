"""Hierarchical Class Integration with an endpoint that answers correctly, wrongly, partly, or with nonsense."""

import json
import re

import pytest
from fake_llm import asked_names, completion, edited, good, html, says, sentence, status, word_range

from intclip.errors import LanguageModelError, TaxonomyError
from intclip.labels import load_taxonomy
from intclip.labels.hci import integrate, parse_object
from intclip.labels.lengths import WORD_RANGES, count_words

TREE = load_taxonomy("mikels8")


@pytest.mark.parametrize("form", WORD_RANGES)
def test_two_stages_give_one_sentence_a_class(server, make_client, form):
    done = integrate(TREE, make_client(), form, batch=3)
    sentences = done.taxonomy.sentences(form)
    least, most = WORD_RANGES[form]
    assert len(set(sentences)) == len(TREE)
    assert all(least <= count_words(text) <= most for text in sentences)
    assert done.taxonomy.names == TREE.names
    others = [f for f in WORD_RANGES if f != form]
    assert all(done.taxonomy.sentences(f) == TREE.sentences(f) for f in others)
    stages = [word_range(request) for request in server.requests]
    assert stages == [None] * 3 + [WORD_RANGES[form]] * 3
    assert [len(asked_names(request)) for request in server.requests] == [3, 3, 2, 3, 3, 2]
    assert {answer.served_by for answer in done.answers} == {"fake-1"}


def test_what_the_model_is_told(server, make_client):
    integrate(TREE, make_client(), "6-9")
    merge, describe = (request["messages"][0]["content"] for request in server.requests)
    assert "- amusement: amusement / positive (Finding something funny or entertaining.)" in merge
    assert "- sadness: sadness / negative" in merge
    # stage 2 is given what stage 1 merged
    assert f"- amusement: {sentence('amusement', 3)} (Finding" in describe
    assert "at least 6 and at most 9 words" in describe


def test_fine_only_leaves_out_the_levels(server, make_client):
    done = integrate(TREE, make_client(), fine_only=True)
    assert [word_range(request) for request in server.requests] == [(11, 15)]
    assert "positive" not in server.requests[0]["messages"][0]["content"]
    assert done.merged == {name: name for name in TREE.names}


def test_a_taxonomy_without_levels_has_one_stage(server, make_client):
    integrate(load_taxonomy("mdid-semiotic"), make_client())
    assert len(server.requests) == 1


def test_an_unknown_length_is_refused(make_client):
    with pytest.raises(TaxonomyError, match=r"'7'.*3-5, 6-9, 11-15, 16-20"):
        integrate(TREE, make_client(), "7")


def drop_one(texts, request):
    texts.pop("awe")


def too_long(texts, request):
    texts["awe"] = sentence("awe", 19)


def too_many_tokens(texts, request):
    texts["awe"] = " ".join(["incomprehensibilities" * 3] * 12)


def repeat(texts, request):
    texts["awe"] = texts["anger"].upper()


def no_text(texts, request):
    texts["awe"] = ["a", "list"]


WRONG = [
    (drop_one, "awe: it is missing"),
    (too_long, "awe: it has 19 words; use 11 to 15"),
    (too_many_tokens, "awe: it has .* CLIP tokens; use at most 46"),
    (repeat, "awe: it is the same as that of 'anger'"),
    (no_text, "awe: it is missing"),
]


@pytest.mark.parametrize(("change", "reason"), WRONG, ids=[change.__name__ for change, _ in WRONG])
def test_a_wrong_sentence_is_asked_for_again_with_the_reason(server, make_client, change, reason):
    server.script = [good, edited(change)]
    done = integrate(TREE, make_client())
    assert done.taxonomy.sentences()[TREE.index("awe")] == sentence("awe", 12)
    assert len(server.requests) == 3
    messages = server.requests[2]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert re.search(reason, messages[2]["content"])
    assert asked_names(server.requests[2]) == ["awe"]


def test_a_merged_label_that_is_too_long_is_asked_for_again(server, make_client):
    server.script = [edited(lambda texts, request: texts.update(awe=sentence("awe", 14)))]
    integrate(TREE, make_client())
    assert "awe: it has 14 words; use at most 12" in server.requests[1]["messages"][2]["content"]


@pytest.mark.parametrize("text", ["I cannot help with that.", "{", "[1, 2]", "{'awe': 1}", '"a"'])
def test_nonsense_is_asked_again(server, make_client, text):
    server.script = [says(text)]
    done = integrate(TREE, make_client())
    assert len(server.requests) == 3
    assert "not a JSON object" in server.requests[1]["messages"][2]["content"]
    assert all(answer.text != text for answer in done.answers)


@pytest.mark.parametrize("times", [1, 3])
def test_the_same_taxonomy_again_asks_nothing_even_after_an_answer_of_no_use(server, make_client, times):
    server.script = [says("I cannot help with that.")] * times
    first = integrate(TREE, make_client())
    asked = len(server.requests)
    assert integrate(TREE, make_client()).taxonomy == first.taxonomy
    assert len(server.requests) == asked


def test_a_cut_off_answer_is_asked_again_with_more_room(server, make_client):
    server.script = [says('{"amusement": "Fun and', finish="length")]
    integrate(TREE, make_client())
    first, second = server.requests[:2]
    assert "the answer was cut off" in second["messages"][2]["content"]
    assert second["max_tokens"] == 2 * first["max_tokens"]


def test_nonsense_ends_after_some_rounds_and_is_not_kept(server, make_client, tmp_path):
    server.otherwise = says("no")
    with pytest.raises(LanguageModelError, match=r"fake .*8 classes.*3 rounds.*'amuse"):
        integrate(TREE, make_client(), rounds=3)
    assert len(server.requests) == 3
    assert not list((tmp_path / "answers").iterdir())


def test_one_class_that_never_fits_ends_it_with_its_reason(server, make_client):
    server.otherwise = edited(
        lambda t, r: t.update({n: "too short" for n in t if n == "awe"}) if word_range(r) else None
    )
    with pytest.raises(LanguageModelError, match=r"1 classes.*4 rounds.*'awe'.*2 words.*11 to 15"):
        integrate(TREE, make_client())


def test_an_interrupted_run_goes_on_where_it_stopped(server, make_client):
    """The server dies after the first of three batches of stage 2; the next run requests only the rest."""
    server.script = [good] * 4
    server.otherwise = status(500)
    with pytest.raises(LanguageModelError, match="HTTP 500"):
        integrate(TREE, make_client(attempts=2), batch=3)
    asked = len(server.requests)
    server.otherwise = good
    done = integrate(TREE, make_client(), batch=3)
    assert len(server.requests) - asked == 2
    assert sum(answer.cached for answer in done.answers) == 4
    again = integrate(TREE, make_client(), batch=3)
    assert len(server.requests) - asked == 2
    assert again.taxonomy == done.taxonomy
    assert all(answer.cached for answer in again.answers)


def test_a_corrected_run_is_replayed_from_the_cache_too(server, make_client):
    server.script = [good, edited(too_long)]
    done = integrate(TREE, make_client())
    asked = len(server.requests)
    assert integrate(TREE, make_client()).taxonomy == done.taxonomy
    assert len(server.requests) == asked


def test_faults_on_the_way(server, make_client):
    server.script = [status(429), html, good, status(503), says("nonsense"), edited(drop_one), status(500), good]
    done = integrate(TREE, make_client())
    assert len(set(done.taxonomy.sentences())) == 8


def test_progress_is_reported(make_client):
    seen = []
    integrate(TREE, make_client(), batch=4, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_keys_in_other_case_and_quoted_sentences_are_understood(server, make_client):
    def reply(handler, request):
        texts = {name.upper(): f'"{sentence(name, 12)}"' for name in asked_names(request)}
        handler.reply(completion(json.dumps(texts)))

    server.otherwise = reply
    assert integrate(TREE, make_client(), fine_only=True).taxonomy.sentences()[0] == sentence("amusement", 12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "b"}', {"a": "b"}),
        ('Here:\n```json\n{"a": "b"}\n```\nEnjoy!', {"a": "b"}),
        ('{"a": "line\nbreak"}', {"a": "line\nbreak"}),
        ("nothing", None),
        ("} {", None),
        ("{" * 5000 + "}", None),
        ("[1]", None),
    ],
)
def test_parse_object(text, value):
    assert parse_object(text) == value
