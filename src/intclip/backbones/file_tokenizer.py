"""Convert text to token ids with the `tokenizer.json` beside the weights (SigLIP, MetaCLIP 2, TIPS)."""

import re
import string
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from intclip.backbones.config_section import read_object
from intclip.backbones.tokenizer import encode, pad
from intclip.errors import CheckpointError, TextLengthError, reason

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonical(text: str) -> str:
    """Clean a text as in SigLIP's training: lower case, no ASCII punctuation, single spaces (big_vision)."""
    return re.sub(r"\s+", " ", text.replace("_", " ").translate(_WITHOUT_PUNCTUATION).lower()).strip()


class FileTokenizer:
    """A tokenizer of Hugging Face's `tokenizers`, without padding or truncation.

    Args:
        path: A `tokenizer.json`; a `tokenizer_config.json` beside it names the padding token.
        vocab_size: Vocabulary size of the text tower; a tokenizer with higher ids is rejected.
        ends: Ensure that each text ends with the end token and has no start token (SigLIP).
        clean: Clean texts first, as SigLIP does; see `canonical`.
        pad_id: Padding id, if the files do not name it.

    Raises:
        CheckpointError: The file is damaged or belongs to another tower.
    """

    def __init__(
        self, path: Path, vocab_size: int, *, ends: bool = False, clean: bool = False, pad_id: int | None = None
    ) -> None:
        self.path, self.ends, self.clean = path, ends, clean
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer, or it is damaged: {reason(error)}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= vocab_size:
            raise CheckpointError(
                f"{path} has token ids up to {highest}, the text tower {vocab_size} tokens; take the tokenizer of these"
                " weights"
            )
        named = self._named_tokens()
        pad_token = self._first(named.get("pad_token"), "<pad>", "</s>")
        self.end_id = self._first(named.get("eos_token"), "</s>", "<eos>") if ends else None
        self.start_id = self._first(named.get("bos_token"), "<s>", "<bos>") if ends else None
        self.unknown_id = self._first(named.get("unk_token"), "<unk>", "[UNK]")
        pad_token = pad_id if pad_token is None else pad_token
        if pad_token is None or (ends and self.end_id is None):
            raise CheckpointError(f"{path} has no {'padding' if pad_token is None else 'end'} token; fetch it again")
        self.pad_id = pad_token

    def vocabulary(self) -> str:
        """Return the content of the file."""
        return str(self._tokenizer.to_str())

    def tokenize(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Return tokens (T, L), int64, L the longest of these texts, padded at the end with `pad_id`.

        Raises:
            TextLengthError: A text has more than `context_length` tokens.
        """
        rows = [self._ids(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > context_length:
                raise TextLengthError.of(text, len(row), context_length)
        return pad(rows, max(1, *map(len, rows)) if rows else 0, value=self.pad_id)

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """Return the share of unknown tokens in each text, in [0, 1]; 0 for an empty text."""
        rows = [self._tokenizer.encode(self._prepared(text), add_special_tokens=False).ids for text in texts]
        return [row.count(self.unknown_id) / len(row) if row and self.unknown_id is not None else 0.0 for row in rows]

    def _prepared(self, text: str) -> str:
        return canonical(text) if self.clean else text

    def _ids(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(self._prepared(text)).ids
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{self.path} cannot read {text!r:.80}: {reason(error)}; fetch it again") from error
        if not self.ends:
            return ids
        if ids and ids[0] == self.start_id and self.start_id != self.end_id:
            ids = ids[1:]
        assert self.end_id is not None
        return ids if ids and ids[-1] == self.end_id else [*ids, self.end_id]

    def _first(self, *names: object) -> int | None:
        """Return the id of the first of these tokens that exists."""
        ids = (self._tokenizer.token_to_id(name) for name in names if isinstance(name, str))
        return next((index for index in ids if index is not None), None)

    def _named_tokens(self) -> dict[str, object]:
        """Return special tokens by role, from `tokenizer_config.json`."""
        content = read_object(self.path.with_name("tokenizer_config.json"))
        return {
            key: value.get("content") if isinstance(value, dict) else value
            for key, value in content.items()
            if key.endswith("_token")
        }


class StandInTokenizer:
    """Tokenizer for towers with random weights, to try a pipeline: CLIP's ids, folded into the vocabulary.

    Args:
        vocab_size: Vocabulary size of the text tower.
        start: Token before each text, if any.
        end: Token after each text, if any.
        pad_id: Padding id.
    """

    def __init__(self, vocab_size: int, *, start: int | None, end: int | None, pad_id: int) -> None:
        self.vocab_size, self.start, self.end, self.pad_id = vocab_size, start, end, pad_id

    def vocabulary(self) -> str:
        """See `FileTokenizer.vocabulary`: what it does follows from its arguments, which are the tower's."""
        return ""

    def tokenize(self, texts: Sequence[str], context_length: int) -> Tensor:
        """See `FileTokenizer.tokenize`."""
        first = 1 + max(self.pad_id, self.start or 0, self.end or 0)
        around = [[] if token is None else [token] for token in (self.start, self.end)]
        rows = []
        for text in texts:
            ids = encode(canonical(text), context_length + 2 - len(around[0]) - len(around[1]))[1:-1]
            rows.append([*around[0], *(first + token % (self.vocab_size - first) for token in ids), *around[1]])
        return pad(rows, max(1, *map(len, rows)) if rows else 0, value=self.pad_id)

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """Return 0 for each text: no token is unknown."""
        return [0.0] * len(texts)


TextTokenizer = FileTokenizer | StandInTokenizer
