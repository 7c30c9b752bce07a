"""Inputs of the heads: vectors per channel, and similarities to each label's sentences."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from intclip.labels.taxonomy import Taxonomy

Floats = npt.NDArray[np.float32]
MAX_TERMS = 2000
_COUNTERS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 2), "stop_words": "english"},
    "letters": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SENTENCE_SHARE = 0.5
"""Weight of a post's best sentence, compared with the whole post, in the similarity to a label's sentence."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Counts of all terms in N texts, by kind ("words", "letters"); a kind without a term is missing.

    Attributes:
        names: The terms, in the order of the columns.
        counts: Sparse (N, terms).
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counts: Mapping[str, csr_array] = field(default_factory=dict)

    def take(self, rows: npt.NDArray[np.int64]) -> "Terms":
        """Return some of the texts."""
        return Terms(self.names, {kind: counts[rows] for kind, counts in self.counts.items()})


@dataclass(frozen=True, eq=False)
class Inputs:
    """One channel of N posts, before fitting.

    Attributes:
        blocks: Vectors (N, D) by block name.
        anchors: Similarity (N, K) to the labels' sentences.
        terms: Of the texts; None for photos.
    """

    blocks: dict[str, Floats]
    anchors: Floats
    terms: Terms | None = None

    def __len__(self) -> int:
        """Return the number N of posts."""
        return len(self.anchors)

    def take(self, rows: npt.ArrayLike) -> "Inputs":
        """Return some of the posts."""
        index = np.asarray(rows, dtype=np.int64)
        terms = None if self.terms is None else self.terms.take(index)
        return Inputs({name: block[index] for name, block in self.blocks.items()}, self.anchors[index], terms)


@dataclass(frozen=True)
class WordCounts:
    """Fitted vocabularies.

    Attributes:
        terms: Terms by kind, in the order of the columns.
        idf: Inverse document frequencies by kind of terms.
    """

    terms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    idf: Mapping[str, Floats] = field(default_factory=dict)

    def __call__(self, found: Terms, posts: int) -> dict[str, Floats]:
        """Return one block (N, terms) per kind: log counts times inverse document frequency, at unit length.

        Args:
            found: Counts of N texts.
            posts: Their number N.
        """
        blocks = {}
        for kind, terms in self.terms.items():
            counts = np.zeros((posts, len(terms)), dtype=np.float32)
            places = {name: place for place, name in enumerate(found.names.get(kind, ()))}
            if known := [column for column, term in enumerate(terms) if term in places]:
                counts[:, known] = found.counts[kind][:, [places[terms[column]] for column in known]].toarray()
            blocks[kind] = unit(np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * self.idf[kind])
        return blocks


def count_terms(texts: Sequence[str]) -> Terms:
    """Count words, word pairs and character n-grams."""
    from sklearn.feature_extraction.text import CountVectorizer

    names, counts = dict[str, list[str]](), dict[str, csr_array]()
    for kind, options in _COUNTERS.items():
        counter = CountVectorizer(**options)
        with suppress(ValueError):  # no text has a term
            counts[kind] = csr_array(counter.fit_transform(texts))
            names[kind] = counter.get_feature_names_out().tolist()
    return Terms(names, counts)


def fit_word_counts(found: Terms) -> WordCounts:
    """Fit to the most frequent terms that occur in at least two texts, without labels."""
    terms: dict[str, list[str]] = {}
    idf: dict[str, Floats] = {}
    for kind, counts in found.counts.items():
        total, texts = counts.sum(axis=0), (counts > 0).sum(axis=0)
        repeated = np.flatnonzero(texts >= 2)
        kept = np.sort(repeated[np.argsort(-total[repeated], kind="stable")[:MAX_TERMS]])
        if len(kept):
            terms[kind] = [found.names[kind][column] for column in kept]
            idf[kind] = (np.log((1 + counts.shape[0]) / (1 + texts[kept])) + 1).astype(np.float32)
    return WordCounts(terms, idf)


def label_sentences(taxonomy: Taxonomy) -> list[list[str]]:
    """Return all forms of text of the K labels: HCI sentences and definitions, or else the names."""
    forms = [list(taxonomy.sentence_forms[form]) for form in taxonomy.written]
    if taxonomy.definitions:
        forms.append([taxonomy.definitions.get(name, name) for name in taxonomy.names])
    return forms or [list(taxonomy.names)]


def text_inputs(texts: Sequence[str], embed: Callable[[Sequence[str]], Floats], labels: Floats) -> Inputs:
    """Return the text channel of N posts: whole texts, and means of their sentences.

    Args:
        texts: N texts.
        embed: Maps texts to unit embeddings.
        labels: (F, K, D) embeddings of F forms of the labels' sentences, by the same encoder.
    """
    whole = [" ".join(text.split()) or " " for text in texts]
    parts = [[part for part in _SENTENCE_END.split(text.strip()) if part.strip()] for text in texts]
    sentences = [[" ".join(part.split()) for part in group] or [text] for group, text in zip(parts, whole, strict=True)]
    owner = np.repeat(np.arange(len(whole)), [len(group) for group in sentences])
    # In one call: most texts are a single sentence, which is then encoded only once.
    found = embed([*whole, *(part for group in sentences for part in group)])
    text, split = found[: len(whole)], found[len(whole) :]
    mean = np.zeros_like(text)
    np.add.at(mean, owner, split)
    anchors = np.zeros((len(whole), labels.shape[1]), dtype=np.float32)
    for form in labels:
        best = np.full(anchors.shape, -1.0, dtype=np.float32)
        np.maximum.at(best, owner, split @ form.T)
        anchors += (text @ form.T + _SENTENCE_SHARE * best) / len(labels)
    return Inputs({"text": text, "sentences": unit(mean)}, anchors, count_terms(texts))


def unit(rows: npt.NDArray[np.floating[Any]]) -> Floats:
    """Normalise rows to unit length; rows of zeros are unchanged."""
    length = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return np.asarray(rows / length, dtype=np.float32)
