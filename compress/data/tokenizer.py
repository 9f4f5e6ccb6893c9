"""Words to numbers, for text classifiers that were trained with this vocabulary."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError

PAD, UNKNOWN = 0, 1
_FIRST_WORD = 2
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Tokenizer:
    """Lower-case words and punctuation marks, each one token: 0 pads, 1 is any word not in the vocabulary."""

    vocabulary: tuple[str, ...]  # word i is token i + 2
    max_tokens: int = 48  # a text is cut or padded at its end to this length

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DataError(f"tokenizer: max_tokens={self.max_tokens}, at least 1.")

    def __len__(self) -> int:
        """How many tokens there are, 0 and 1 included: the rows of an embedding."""
        return _FIRST_WORD + len(self.vocabulary)

    @classmethod
    def build(cls, texts: Iterable[str], size: int = 10_000, max_tokens: int = 48, min_count: int = 2) -> Tokenizer:
        """The most frequent words of ``texts``, which must be train's alone (see ``compress.data.read_texts``).

        Args:
            texts: to count words in.
            size: at most this many tokens, 0 and 1 included.
            max_tokens: length that a text is cut or padded to.
            min_count: a word that is rarer is unknown.
        """
        counts = Counter(word for text in texts for word in _words(text))
        frequent = [word for word, count in counts.items() if count >= min_count]
        frequent.sort(key=lambda word: (-counts[word], word))
        return cls(tuple(frequent[: max(0, size - _FIRST_WORD)]), max_tokens)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Texts as tokens (N, max_tokens)."""
        tokens = np.full((len(texts), self.max_tokens), PAD, dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            words = _words(text)[: self.max_tokens]
            row[: len(words)] = [self._token.get(word, UNKNOWN) for word in words]
        return tokens

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """The words of one text (T,), with a blank between; what is not in the vocabulary is "…"."""
        words = ("…" if token == UNKNOWN else self.vocabulary[token - _FIRST_WORD] for token in tokens if token != PAD)
        return " ".join(words)

    def to_json(self) -> bytes:
        content = {"schema": 1, "max_tokens": self.max_tokens, "vocabulary": self.vocabulary}
        return json.dumps(content, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Tokenizer:
        """Read what ``to_json`` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            values = json.loads(content)
            schema, vocabulary, max_tokens = values["schema"], values["vocabulary"], values["max_tokens"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"no vocabulary as Tokenizer.to_json writes it ({type(error).__name__}: {error})."
            ) from error
        if schema != 1 or not isinstance(max_tokens, int) or not _are_words(vocabulary):
            raise DataError("no vocabulary as Tokenizer.to_json writes it: schema 1, max_tokens, a list of words.")
        return cls(tuple(vocabulary), max_tokens)

    @cached_property
    def _token(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.vocabulary, start=_FIRST_WORD)}


def _words(text: str) -> list[str]:
    return _WORD_OR_MARK.findall(text.lower())


def _are_words(vocabulary: object) -> bool:
    return isinstance(vocabulary, list) and all(isinstance(word, str) for word in vocabulary)
