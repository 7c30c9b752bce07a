"""Suggestions for a valid taxonomy, printed by `intclip labels check`."""

from itertools import combinations

from intclip.labels.lengths import CONTEXT_LENGTH, PROMPT_TOKENS, SENTENCE_TOKENS, WORD_RANGES, count_clip_tokens
from intclip.labels.taxonomy import Taxonomy

ALIKE = 0.75
"""Jaccard similarity of words from which two sentences hardly distinguish their classes."""


def advise(taxonomy: Taxonomy) -> list[str]:
    """Return one line per suggestion."""
    advice = []
    if missing := [form for form in WORD_RANGES if form not in taxonomy.written]:
        advice.append(
            f"no sentences of {', '.join(missing)} words, so other texts are used; "
            "write them, or use `intclip labels integrate`"
        )
    for form, sentences in taxonomy.sentence_forms.items():
        for name, sentence in zip(taxonomy.names, sentences, strict=True):
            if (tokens := count_clip_tokens(sentence) - 2) > CONTEXT_LENGTH - 2:
                advice.append(f"{form}: {name!r} has {tokens} CLIP tokens; CLIP reads {CONTEXT_LENGTH - 2}, lite more")
            elif tokens > SENTENCE_TOKENS:
                advice.append(
                    f"{form}: {name!r} has {tokens} CLIP tokens; beside 16 context vectors, "
                    f"SigLIP and TIPS read {SENTENCE_TOKENS}, CLIP {CONTEXT_LENGTH - PROMPT_TOKENS}"
                )
    for form in taxonomy.written:
        words = [set(sentence.casefold().replace(",", "").split()) for sentence in taxonomy.sentence_forms[form]]
        for (first, a), (second, b) in combinations(zip(taxonomy.names, words, strict=True), 2):
            if len(a & b) / len(a | b) >= ALIKE:
                advice.append(f"{form}: the sentences of {first!r} and {second!r} are nearly equal; make them differ")
    if not taxonomy.source:
        advice.append("no `source:`; state where the labels come from")
    return advice
