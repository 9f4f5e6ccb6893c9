"""``load_data``: from a spec such as ``digits`` or ``images:photos`` to four splits."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from compress.data import cifar10, csv, digits, fashion_mnist, images, mnist, npz, python
from compress.data.options import IMAGE_OPTIONS, TEXT_OPTIONS, DataOptions
from compress.data.splits import Data
from compress.errors import DataError

NAMED: dict[str, Callable[[DataOptions], Data]] = {
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "mnist": mnist.load,
    "mnist-5k": mnist.load_5k,
    "cifar10": cifar10.load,
}

# spec's prefix -> (what follows the colon, the source)
PREFIXED: dict[str, tuple[str, Callable[[str, DataOptions], Data]]] = {
    "images": ("DIR", images.load),
    "npz": ("FILE", npz.load),
    "csv": ("FILE", csv.load),
    "python": ("module:function", python.load),
}


def load_data(spec: str, options: DataOptions | None = None, beside: Path | None = None) -> Data:
    """Read, check and split the data set that ``spec`` names.

    Args:
        spec: digits, fashion-mnist, mnist, mnist-5k, cifar10, images:DIR, npz:FILE, csv:FILE, python:module:function
            or python:./file.py:function.
        options: how to read and split it; None: the defaults.
        beside: folder of the model file; a vocab.json in it is the vocabulary where ``options`` names none.

    Raises:
        DataError: an unknown spec, options that do not apply to it, or data that cannot be used.
    """
    options = options or DataOptions()
    kind, _, target = spec.partition(":")
    if spec not in NAMED and (kind not in PREFIXED or not target):
        raise _unknown(spec, kind)
    _refuse_unused(kind, options)
    if spec in NAMED:
        return NAMED[spec](options)
    if kind == "csv" and options.vocabulary is None and beside is not None:
        vocabulary = beside / csv.VOCABULARY_FILE
        options = dataclasses.replace(options, vocabulary=vocabulary if vocabulary.is_file() else None)
    return PREFIXED[kind][1](target, options)


def _refuse_unused(kind: str, options: DataOptions) -> None:
    """An option that a source would not look at is a mistake worth telling."""
    unused = (IMAGE_OPTIONS if kind in ("csv", "python") else ()) + (() if kind == "csv" else TEXT_OPTIONS)
    given = options.given(unused)
    if given:
        raise DataError(f"--data {kind} takes no {', '.join(given)}. Leave it out.")


def _unknown(spec: str, kind: str) -> DataError:
    known = [*NAMED, *(f"{name}:{target}" for name, (target, _) in PREFIXED.items())]
    near = difflib.get_close_matches(kind.lower(), [*NAMED, *PREFIXED], n=1)
    hint = f" Did you mean {near[0]!r}?" if near and near[0] != kind else ""
    return DataError(f"--data {spec!r} is no data source.{hint} Known are {', '.join(known)}.")
