"""What may be better in a valid taxonomy: said by `intclip labels check`, refused by nobody."""

from itertools import combinations

from intclip.labels.lengths import CONTEXT_LENGTH, PROMPT_TOKENS, WORD_RANGES, count_clip_tokens
from intclip.labels.taxonomy import Taxonomy

ALIKE = 0.75
"""Two sentences that share this part of their words (Jaccard) hardly tell their classes apart."""


def advise(taxonomy: Taxonomy) -> list[str]:
    """One line for each thing that may be better; empty where nothing was found."""
    advice = []
    if missing := [form for form in WORD_RANGES if form not in taxonomy.written]:
        advice.append(
            f"no sentences of {', '.join(missing)} words: other words stand in for them; write them, or have them "
            "written with `intclip labels integrate`"
        )
    free = CONTEXT_LENGTH - PROMPT_TOKENS
    for form, sentences in taxonomy.sentence_forms.items():
        for name, sentence in zip(taxonomy.names, sentences, strict=True):
            if (tokens := count_clip_tokens(sentence) - 2) > CONTEXT_LENGTH - 2:
                advice.append(f"{form}: {name!r} has {tokens} CLIP tokens; CLIP reads {CONTEXT_LENGTH - 2}, lite more")
            elif tokens > free:
                advice.append(f"{form}: {name!r} has {tokens} CLIP tokens; prompts of 16 context vectors leave {free}")
    for form in taxonomy.written:
        words = [set(sentence.casefold().replace(",", "").split()) for sentence in taxonomy.sentence_forms[form]]
        for (first, a), (second, b) in combinations(zip(taxonomy.names, words, strict=True), 2):
            if len(a & b) / len(a | b) >= ALIKE:
                advice.append(f"{form}: the sentences of {first!r} and {second!r} are nearly the same; tell them apart")
    if not taxonomy.source:
        advice.append("no `source:`; say where the labels come from")
    return advice
