"""What a data source may be told. Importing this module imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compress.errors import RecipeError

# Options that other samples refuse. Not channels: the pipeline asks for what the model takes, and means images.
IMAGE_OPTIONS = ("size", "mean", "std")
TEXT_OPTIONS = ("text_column", "label_column", "label_threshold", "vocabulary", "max_tokens")

# Where the data lies is no part of what it is: the vocabulary counts by its content, see Data.files.
_NOT_IN_FINGERPRINT = ("root", "download", "vocabulary")


@dataclass(frozen=True)
class DataOptions:
    """How a source is read, preprocessed and split. The same options on the same data give the same batches."""

    root: Path | None = None  # folder of the data set's files; None: the usual places
    download: bool = False  # may the network be used where the files are not there
    size: int | None = None  # pixels: images become size x size (bilinear, antialiased, aspect not kept)
    channels: int | None = None  # 1 or 3: grey repeated to 3, or RGB made grey (ITU-R 601 luma)
    mean: tuple[float, ...] = ()  # one a channel, or one for all: subtracted after scaling to 0..1
    std: tuple[float, ...] = ()  # as many as mean: divided by, after the mean is subtracted
    limit: int | None = None  # samples: keep at most this many of train, chosen by split_seed
    calibration: int = 512  # samples: the part of train that quantization takes its ranges from
    validation: float = 0.1  # fraction of train, where the source has held-out samples of its own
    test: float = 0.15  # fraction for test, and as much again for validation, where the source has none
    split_seed: int = 0  # of every random choice made in splitting
    text_column: str | None = None  # name, or number from 0 (a file without header); None: "text"
    label_column: str | None = None  # the same; None: "label" if the header has it, else no labels
    label_threshold: float | None = None  # label = 1 where the column's number is above this, else 0
    vocabulary: Path | None = None  # the Tokenizer file that the model was trained with
    max_tokens: int | None = None  # tokens a text is cut or padded to; None: as the vocabulary file says
    # False: ignore the labels, measure fidelity instead of accuracy. "any": those that are no class numbers are kept as
    # they come, of any shape (N, …), for a metric of the user's own.
    labels: bool | Literal["any"] = True

    def __post_init__(self) -> None:
        problems = [text for broken, text in self._rules() if broken]
        if problems:
            raise RecipeError("data options: " + "; ".join(problems) + ".")

    def _rules(self) -> list[tuple[bool, str]]:
        """(broken, what was found and what is allowed) for each rule."""
        counts = {
            "size": self.size,
            "limit": self.limit,
            "calibration": self.calibration,
            "max_tokens": self.max_tokens,
        }
        return [
            *((count is not None and count < 1, f"{name}={count}, at least 1") for name, count in counts.items()),
            (self.channels not in (None, 1, 3), f"channels={self.channels}, allowed are 1 and 3"),
            (len(self.mean) != len(self.std), f"{len(self.mean)} mean and {len(self.std)} std values, give as many"),
            (any(value <= 0 for value in self.std), f"std={self.std}, above 0"),
            (not 0 < self.validation < 1, f"validation={self.validation}, between 0 and 1"),
            (not 0 < self.test < 0.5, f"test={self.test}, between 0 and 0.5"),
            (not 0 <= self.split_seed < 2**32, f"split_seed={self.split_seed}, from 0 to 2**32 - 1"),
        ]

    def given(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``names`` whose value is not the default."""
        default = {field.name: field.default for field in dataclasses.fields(self)}
        return tuple(name for name in names if getattr(self, name) != default[name])

    def fingerprint(self) -> str:
        """Hex sha256 of every option that changes a batch or a split."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_IN_FINGERPRINT}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
