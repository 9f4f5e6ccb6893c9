"""Data sources: ``load_data(spec, options)`` returns four disjoint, deterministic splits of one data set.

One file a source; ``loading.py`` holds the table of them. Importing this package imports no torch, so that the
command line can offer the options at once: the names that need torch are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compress.data.options import DataOptions
from compress.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from compress.data.csv import read_texts
    from compress.data.loading import load_data
    from compress.data.splits import Batch, Data, Split
    from compress.data.synthetic_inputs import synthetic

__all__ = ["Batch", "Data", "DataOptions", "Split", "Tokenizer", "load_data", "read_texts", "synthetic"]

_NEED_TORCH = {
    "Batch": "compress.data.splits",
    "Data": "compress.data.splits",
    "Split": "compress.data.splits",
    "load_data": "compress.data.loading",
    "read_texts": "compress.data.csv",
    "synthetic": "compress.data.synthetic_inputs",
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NEED_TORCH[name]), name)
