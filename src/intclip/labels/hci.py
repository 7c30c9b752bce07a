"""Hierarchical Class Integration: a language model merges a class's levels, then writes one sentence of a set length.

Paper, Section 3.3: stage 1 consolidates the levels a1 … an of a label and drops repetition; stage 2 turns the result
into a sentence of fixed length, which follows the learned context vectors of a prompt. The paper's prompts are not
published; ours are in `labels/prompts`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from string import Template
from typing import Any

from intclip.errors import LanguageModelError, TaxonomyError
from intclip.labels.lengths import SENTENCE_TOKENS, WORD_RANGES, count_clip_tokens, count_words
from intclip.labels.llm import Answer, ChatClient
from intclip.labels.taxonomy import FORMS, Taxonomy

MERGED_WORDS = 12
"""Maximum words of a merged label, as requested by stage 1's prompt."""

Complaint = Callable[[str, str, Mapping[str, str]], str | None]
"""Returns what is wrong with a class's text, given the accepted texts; None if valid."""


@dataclass(frozen=True)
class Integration:
    """A taxonomy with new sentences, and their provenance.

    Attributes:
        taxonomy: The taxonomy with the sentences in `form`.
        form: Such as "11-15".
        merged: Class name to its merged label (stage 1).
        answers: The used answers, with model, prompt hash and date.
    """

    taxonomy: Taxonomy
    form: str
    merged: Mapping[str, str]
    answers: tuple[Answer, ...]


def integrate(
    taxonomy: Taxonomy,
    client: ChatClient,
    form: str = "11-15",
    *,
    fine_only: bool = False,
    batch: int = 8,
    rounds: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Integration:
    """Have a language model write a taxonomy's sentences.

    Answers are cached immediately, so an interrupted run continues where it stopped. Classes
    with missing, repeated or wrong-length texts are requested again, with the reason.

    Args:
        taxonomy: Classes to describe.
        client: Client of the endpoint.
        form: Length of the sentences: "3-5", "6-9", "11-15" or "16-20" words.
        fine_only: Skip stage 1 and use the class names (the paper's HCI-FG, Table 6b).
        batch: Classes per request.
        rounds: Requests per batch, including the first.
        on_progress: Called with (done, total) after each batch.

    Raises:
        TaxonomyError: The form is unknown.
        LanguageModelError: The endpoint failed, or gave no valid text for a class within `rounds`.
    """
    if form not in WORD_RANGES:
        raise TaxonomyError(f"no sentence length {form!r}; choose one of: {', '.join(WORD_RANGES)}")
    names = taxonomy.names
    batches = [names[start : start + batch] for start in range(0, len(names), batch)]
    merge = bool(taxonomy.parents) and not fine_only
    total = len(batches) * (2 if merge else 1)
    answers: list[Answer] = []
    done = 0

    def ask(
        template: str, values: Mapping[str, str], asked: Sequence[str], texts: dict[str, str], check: Complaint
    ) -> None:
        nonlocal done
        prompt = _prompt(template, {**values, "names": _lines(asked)})
        answers.extend(_ask_batch(client, prompt, asked, texts, check, rounds))
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    merged: dict[str, str] = {}
    if merge:
        for asked in batches:
            classes = _lines([_with_levels(taxonomy, name) for name in asked])
            ask("merge", {"classes": classes}, asked, merged, _merge_complaint)
    else:
        merged = {name: name for name in names}
    least, most = WORD_RANGES[form]
    sentences: dict[str, str] = {}
    everything = _lines([f"{name}: {merged[name]}" if merged[name] != name else name for name in names])
    for asked in batches:
        classes = _lines([_with_definition(taxonomy, name, merged[name]) for name in asked])
        values = {"all": everything, "classes": classes, "least": str(least), "most": str(most)}
        ask("describe", values, asked, sentences, _sentence_complaint(least, most))
    forms = {**taxonomy.sentence_forms, form: tuple(sentences[name] for name in names)}
    written = tuple(f for f in WORD_RANGES if f == form or f in taxonomy.written)
    result = replace(taxonomy, sentence_forms={f: forms[f] for f in FORMS}, written=written)
    return Integration(result, form, merged, tuple(answers))


def _ask_batch(
    client: ChatClient,
    prompt: str,
    asked: Sequence[str],
    texts: dict[str, str],
    complaint: Complaint,
    rounds: int,
) -> list[Answer]:
    """Fill `texts` for all names in `asked`; return the useful answers.

    The next prompt quotes the previous answer, so useless answers are cached too, to avoid
    repeating requests. They are removed if the same question comes up again, and if the batch fails.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    used: list[Answer] = []
    useless: dict[str, Answer] = {}
    reasons: dict[str, str] = {}
    max_tokens = 256 + 96 * len(asked)
    for _ in range(rounds):
        answer = client.ask(messages, max_tokens=max_tokens)
        if answer.cached and answer.prompt_hash in useless:
            client.forget(answer)
            answer = client.ask(messages, max_tokens=max_tokens)
        open_before = [name for name in asked if name not in texts]
        reasons = _accept(answer, open_before, texts, complaint)
        if len(reasons) < len(open_before):
            used.append(answer)
            useless.pop(answer.prompt_hash, None)
        else:
            useless[answer.prompt_hash] = answer
        if not reasons:
            return used
        if answer.finish == "length":
            max_tokens *= 2
        complaints = _lines([f"{name}: {reason}" for name, reason in reasons.items()])
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": _prompt("again", {"complaints": complaints, "names": _lines(list(reasons))})},
        ]
    for answer in useless.values():
        client.forget(answer)
    name, reason = next(iter(reasons.items()))
    raise LanguageModelError(
        f"{client.model} gave no valid text for {len(reasons)} classes in {rounds} rounds, such as {name!r} "
        f"({reason}); use another model, or write these manually"
    )


def _accept(answer: Answer, wanted: Sequence[str], texts: dict[str, str], complaint: Complaint) -> dict[str, str]:
    """Accept the valid texts of an answer; return the errors of the others."""
    given = parse_object(answer.text)
    if given is None:
        what = "was cut off" if answer.finish == "length" else "was not a JSON object"
        return dict.fromkeys(wanted, f"the answer {what}")
    folded = {" ".join(str(key).split()).casefold(): value for key, value in given.items()}
    reasons = {}
    for name in wanted:
        value = folded.get(name.casefold())
        if not isinstance(value, str) or not value.strip():
            reasons[name] = "it is missing"
            continue
        text = " ".join(value.split()).strip("\"'“”")
        if (reason := complaint(name, text, texts)) is not None:
            reasons[name] = reason
        else:
            texts[name] = text
    return reasons


def parse_object(text: str) -> dict[str, Any] | None:
    """Extract the JSON object from an answer with optional fences or text around it; None if there is none."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        value = json.loads(text[start : end + 1], strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _merge_complaint(name: str, text: str, texts: Mapping[str, str]) -> str | None:
    if (words := count_words(text)) > MERGED_WORDS:
        return f"it has {words} words; use at most {MERGED_WORDS}"
    return _twice(text, texts)


def _sentence_complaint(least: int, most: int) -> Complaint:
    def complaint(name: str, text: str, texts: Mapping[str, str]) -> str | None:
        words = count_words(text)
        if not least <= words <= most:
            return f"it has {words} words; use {least} to {most}"
        if (tokens := count_clip_tokens(text) - 2) > SENTENCE_TOKENS:
            return f"it has {tokens} CLIP tokens; use at most {SENTENCE_TOKENS}, with simpler words"
        if text.casefold() == name.casefold():
            return "it only repeats the name"
        return _twice(text, texts)

    return complaint


def _twice(text: str, texts: Mapping[str, str]) -> str | None:
    other = next((name for name, known in texts.items() if known.casefold() == text.casefold()), None)
    return None if other is None else f"it is the same as that of {other!r}; make the two differ"


def _with_levels(taxonomy: Taxonomy, name: str) -> str:
    return _with_definition(taxonomy, name, " / ".join((name, *taxonomy.parents.get(name, ()))))


def _with_definition(taxonomy: Taxonomy, name: str, words: str) -> str:
    definition = taxonomy.definitions.get(name)
    line = name if words == name else f"{name}: {words}"
    return f"{line} ({definition})" if definition else line


def _lines(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _prompt(name: str, values: Mapping[str, str]) -> str:
    text = (files("intclip.labels") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values)
