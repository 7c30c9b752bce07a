"""From embeddings and words to one vector a post whose dot products are what every head reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intclip.posts.encoders import Floats, Raw, unit

MAX_TERMS = 2000
_COUNTS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 2), "stop_words": "english"},
    "letters": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}


@dataclass(frozen=True)
class Blocks:
    """Fitted blocks: each is centred, brought to unit length, and weighs the same.

    Attributes:
        means: Block name to its mean (D,).
        terms: Kind of counts ("words", "letters") to its vocabulary, in the order of the columns.
        idf: Kind of counts to the inverse document frequencies.
    """

    means: Mapping[str, Floats]
    terms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    idf: Mapping[str, Floats] = field(default_factory=dict)

    def transform(self, raw: Raw) -> Floats:
        """Unit vectors (N, d) of posts; a dot product is the mean of the blocks' centred cosines."""
        return _join({**raw.dense, **self._counts(raw.texts)}, self.means)

    def _counts(self, texts: Sequence[str] | None) -> dict[str, Floats]:
        if texts is None:
            return {}
        return {
            kind: _weigh(_counter(kind, vocabulary=list(terms)).transform(texts), self.idf[kind])
            for kind, terms in self.terms.items()
        }


def fit_blocks(raw: Raw) -> tuple[Blocks, Floats]:
    """Means, vocabularies and document frequencies of posts, and their own vectors; labels are not looked at."""
    blocks: dict[str, Floats] = dict(raw.dense)
    terms: dict[str, list[str]] = {}
    idf: dict[str, Floats] = {}
    for kind in _COUNTS if raw.texts is not None else ():
        assert raw.texts is not None
        counter = _counter(kind, max_features=MAX_TERMS, min_df=2)
        try:
            counts = counter.fit_transform(raw.texts)
        except ValueError:  # no term is in two posts
            continue
        terms[kind] = list(map(str, counter.get_feature_names_out()))
        seen = np.asarray((counts > 0).sum(axis=0)).ravel()
        idf[kind] = (np.log((1 + len(raw)) / (1 + seen)) + 1).astype(np.float32)
        blocks[kind] = _weigh(counts, idf[kind])
    means = {name: block.mean(axis=0) for name, block in blocks.items()}
    return Blocks(means, terms, idf), _join(blocks, means)


def _join(blocks: Mapping[str, Floats], means: Mapping[str, Floats]) -> Floats:
    parts = [unit(blocks[name] - mean) for name, mean in means.items()]
    return np.asarray(np.concatenate(parts, axis=1) / np.sqrt(len(parts)), dtype=np.float32)


def _counter(kind: str, **options: Any) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(**_COUNTS[kind], **options)


def _weigh(counts: Any, idf: Floats) -> Floats:
    """Logarithmic counts times inverse document frequency, of unit length."""
    dense = np.asarray(counts.toarray(), dtype=np.float32)
    return unit(np.where(dense > 0, 1 + np.log(np.maximum(dense, 1)), 0) * idf)
