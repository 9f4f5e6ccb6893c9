"""``csv:FILE``: one text a row, with or without a label. ``.tsv`` files are split at tabs and know no quotes."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from compress.data.arrays import About, Arrays, from_arrays
from compress.data.options import DataOptions
from compress.data.partition import Pools, partition
from compress.data.splits import Data
from compress.data.tokenizer import Tokenizer
from compress.errors import DataError

if TYPE_CHECKING:
    import _csv

VOCABULARY_FILE = "vocab.json"
_SNIFFED_CHARACTERS = 64 * 1024


@dataclass(frozen=True)
class Table:
    """The two columns in use."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None  # as written
    lines: tuple[int, ...]  # line of the file that each row ends on


def load(target: str, options: DataOptions) -> Data:
    """Texts as tokens (N, max_tokens) int64, input name "tokens"; labels as whole numbers, or names in sorted order.

    ``options.vocabulary`` must be the file of the tokenizer that the model was trained with; it is handed on in
    ``Data.files`` so that it ships with the model.
    """
    path = Path(target).expanduser()
    tokenizer = _tokenizer(path, options)
    table = _read(path, options)
    labels, names = _labels(path, table, options)
    tokens = tokenizer.encode(table.texts)  # (N, max_tokens)
    known = float((tokens > 1).sum() / max(1, (tokens > 0).sum()))
    about = About(
        name=f"csv:{path.name}",
        input_name="tokens",
        class_names=names,
        notes=(f"{known:.1%} of the tokens are in the vocabulary ({len(tokenizer)} tokens).",),
        files={VOCABULARY_FILE: tokenizer.to_json()},
    )
    return from_arrays(about, Arrays(tokens, labels), None, options)


def read_texts(path: str | Path, options: DataOptions) -> tuple[str, ...]:
    """The texts of the train split alone, in its order: what a training script builds its vocabulary from.

    Example::

        options = DataOptions(text_column="review", label_column="stars", label_threshold=3)
        Path("vocab.json").write_bytes(Tokenizer.build(read_texts("reviews.csv", options)).to_json())
        data = load_data("csv:reviews.csv", dataclasses.replace(options, vocabulary=Path("vocab.json")))
    """
    path = Path(path).expanduser()
    texts = _read(path, options).texts
    train = partition(f"csv:{path.name}", Pools(len(texts)), options).train
    return tuple(texts[number] for number in train)


def _tokenizer(path: Path, options: DataOptions) -> Tokenizer:
    if options.vocabulary is None:
        raise DataError(
            f"csv:{path.name}: the vocabulary that the model was trained with is needed. Name it with --vocabulary, or "
            f"put it beside the model as {VOCABULARY_FILE}; compress.data.Tokenizer.build(texts).to_json() makes one."
        )
    try:
        tokenizer = Tokenizer.from_json(options.vocabulary.read_bytes())
    except OSError as error:
        raise DataError(f"vocabulary {options.vocabulary}: cannot be read ({error.strerror}).") from error
    except DataError as error:
        raise DataError(f"vocabulary {options.vocabulary}: {error}") from error
    return tokenizer if options.max_tokens is None else replace(tokenizer, max_tokens=options.max_tokens)


def _read(path: Path, options: DataOptions) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = _reader(path, file)
            return _table(path, ((reader.line_num, row) for row in reader), options)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). --data csv:FILE names a text file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{path}: not readable as CSV ({error}).") from error


def _reader(path: Path, file: TextIO) -> _csv.Reader:
    if path.suffix.lower() == ".tsv":
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    sample = file.read(_SNIFFED_CHARACTERS)
    file.seek(0)
    return csv.reader(file, delimiter=_delimiter(sample))


def _delimiter(sample: str) -> str:
    try:
        return csv.Sniffer().sniff(sample, delimiters=",;\t|").delimiter
    except csv.Error:  # one column, or too little to tell
        return ","


def _table(path: Path, numbered_rows: Iterator[tuple[int, list[str]]], options: DataOptions) -> Table:
    rows = [(line, row) for line, row in numbered_rows if row]
    asked = [name for name in (options.text_column or "text", options.label_column) if name is not None]
    header = None if all(name.isdecimal() for name in asked) else rows[0][1] if rows else []
    rows = rows if header is None else rows[1:]
    if not rows:
        raise DataError(f"{path}: no rows. One row a text is needed.")
    width = len(rows[0][1]) if header is None else len(header)
    for line, row in rows:
        if len(row) != width:
            raise DataError(
                f"{path}: line {line} has {len(row)} columns where the first line has {width}. Mend the line."
            )
    text = _column(path, asked[0], header, width)
    label = _label_column(path, header, width, options)
    return Table(
        texts=tuple(row[text] for _, row in rows),
        labels=None if label is None else tuple(row[label].strip() for _, row in rows),
        lines=tuple(line for line, _ in rows),
    )


def _label_column(path: Path, header: list[str] | None, width: int, options: DataOptions) -> int | None:
    if not options.labels:
        return None
    if options.label_column is not None:
        return _column(path, options.label_column, header, width)
    if options.label_threshold is not None or "label" in (header or ()):
        return _column(path, "label", header, width)
    return None


def _column(path: Path, name: str, header: list[str] | None, width: int) -> int:
    if header is not None and name in header:
        return header.index(name)
    if name.isdecimal() and int(name) < width:
        return int(name)
    found = f"the columns {', '.join(header)}" if header is not None else f"{width} columns and no header"
    raise DataError(
        f"{path}: no column {name!r}; it has {found}. Name one with --text-column and --label-column "
        "(numbers from 0 for a file without header)."
    )


def _labels(path: Path, table: Table, options: DataOptions) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """Class numbers (N,) and class names, by the first rule that fits: threshold, whole numbers, names."""
    if table.labels is None:
        return None, ()
    for line, label in zip(table.lines, table.labels, strict=True):
        if not label:
            raise DataError(f"{path}: line {line} has no label. Fill it in, or ignore labels with --no-labels.")
    if options.label_threshold is not None:
        return _numbers(path, table.labels, table.lines) > options.label_threshold, ()
    if all(_is_number(label) for label in table.labels):
        return _numbers(path, table.labels, table.lines), ()
    names = tuple(sorted(set(table.labels)))
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[label] for label in table.labels]), names


def _numbers(path: Path, labels: tuple[str, ...], lines: tuple[int, ...]) -> NDArray[np.float64]:
    for line, label in zip(lines, labels, strict=True):
        if not _is_number(label):
            raise DataError(f"{path}: line {line} has the label {label!r}; --label-threshold needs a number.")
    return np.array([float(label) for label in labels])


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
