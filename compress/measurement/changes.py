"""The samples that a model answers differently since it was compressed, as people want to see them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.measurement.accuracy import Outputs, outputs_of, top1
from compress.measurement.answers import Kept
from compress.values import OnnxModel

if TYPE_CHECKING:
    from torch import Tensor

    from compress.data.splits import Data, Split

EXAMPLES = 12  # shown at most
_LOOKED_AT = 1000  # changed samples that both models answer once more
_PIXELS = 96  # of a thumbnail's longer side, at most
_SMALLEST = 4  # pixels a side that a picture has at least
_CHANNELS = (1, 3)  # grey and colour
_DARK, _BRIGHT = 0, 255


def most_changed(
    baseline: OnnxModel, shipped: OnnxModel, names: tuple[str, str], kept: Kept, data: Data, n: int = EXAMPLES
) -> list[dict[str, Any]]:
    """The examples of the test split whose answer changed, from what the benchmark kept of all answers.

    Only samples that changed are run again, at most 1000 of them, those that were answered rightly before first.

    Args:
        baseline: The first variant.
        shipped: The one that ships.
        names: Of these two variants, in ``kept``.
        kept: The answers to ``data.test``, see `compress.measurement.answers.load_answers`.
        data: For the samples, and the vocabulary where they are texts.
        n: Examples at most.
    """
    before, after = (kept.top1.get(name) for name in names)
    if before is None or after is None or len(before) != len(data.test) or len(after) != len(data.test):
        return []
    changed = np.flatnonzero(before != after)
    if kept.labels is not None:
        changed = changed[np.argsort(before[changed] != kept.labels[changed], kind="stable")]
    if not len(changed):
        return []
    split = replace(data.test, indices=data.test.indices[changed[:_LOOKED_AT]])
    return changed_examples(outputs_of(baseline, split), outputs_of(shipped, split), split, n, data.files)


def changed_examples(
    baseline: Outputs, shipped: Outputs, split: Split, n: int = EXAMPLES, files: Mapping[str, bytes] | None = None
) -> list[dict[str, Any]]:
    """The samples whose answer changed: first those that were right and are wrong, then the others.

    Among each, those first whose earlier answer lost most of its probability.

    Args:
        baseline: Outputs (N, C) on ``split``; a single column is a yes-or-no question. Of others there are no examples,
            nor where labels are no class numbers.
        shipped: The same of the compressed model.
        split: What both answered; the samples that are shown are read once more.
        n: Examples at most.
        files: Of the data, where a vocabulary tells which words tokens are.

    Returns:
        For each its ``index`` in the source, ``label``, the answer ``before`` and ``after`` with the probability that
        each model gave its own, and an ``image`` (a PNG as a data URL) or a ``text``, where the sample is one.
    """
    labels = baseline.labels
    if baseline.values.ndim > 2 or baseline.values.shape != shipped.values.shape:
        return []
    if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        return []  # of a metric: the answers are no classes
    before, after = top1(baseline.values), top1(shipped.values)
    ours, theirs = probabilities(shipped.values), probabilities(baseline.values)
    changed = np.flatnonzero(before != after)
    fall = theirs[changed, before[changed]] - ours[changed, before[changed]]
    others = np.zeros(len(changed), np.bool_) if labels is None else before[changed] != labels[changed]
    chosen = changed[np.lexsort((-fall, others))][:n]
    if not len(chosen):
        return []
    inputs, _ = split.fetch(split.indices[chosen])
    return [
        {
            "index": int(split.indices[sample]),
            "label": None if labels is None else labels[sample].item(),
            "before": int(before[sample]),
            "after": int(after[sample]),
            "before_probability": float(theirs[sample, before[sample]]),
            "after_probability": float(ours[sample, after[sample]]),
            "image": _image(inputs[0][row]) if len(inputs) == 1 else None,
            "text": _text(inputs[0][row], files or {}) if len(inputs) == 1 else None,
        }
        for row, sample in enumerate(chosen)
    ]


def probabilities(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Outputs as the probabilities of the classes; those that are probabilities already stay.

    Args:
        values: (N, C); (N, 1) or (N,) is the logit of a yes-or-no question.

    Returns:
        (N, C), at least two columns, each row with the sum 1.
    """
    from scipy.special import expit, softmax

    columns = values.reshape(len(values), -1).astype(np.float64)
    if columns.shape[1] == 1:
        yes = expit(columns)
        return np.concatenate([1 - yes, yes], axis=1)
    if (columns >= 0).all() and np.allclose(columns.sum(axis=1), 1, atol=1e-3):
        return columns
    found: NDArray[np.float64] = softmax(columns, axis=1)
    return found


def _image(sample: Tensor) -> str | None:
    """A thumbnail of one sample (C, H, W), (H, W, C) or (H, W), as a data URL; None where it is no picture."""
    from PIL import Image

    pixels = _pixels(sample.numpy())
    if pixels is None:
        return None
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    if longest > _PIXELS:
        picture.thumbnail((_PIXELS, _PIXELS))
    else:  # by a whole number: pixels of a small picture stay square
        times = _PIXELS // longest
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _pixels(sample: NDArray[Any]) -> NDArray[np.uint8] | None:
    """(H, W) or (H, W, 3), the smallest value black and the largest white: what --mean and --std did is not undone."""
    if (not np.issubdtype(sample.dtype, np.floating) and sample.dtype != np.uint8) or not np.isfinite(sample).all():
        return None
    if sample.ndim == 3 and sample.shape[0] in _CHANNELS:
        sample = np.moveaxis(sample, 0, -1)
    if sample.ndim == 3 and sample.shape[-1] == 1:
        sample = sample[..., 0]
    if sample.ndim not in (2, 3) or (sample.ndim == 3 and sample.shape[-1] not in _CHANNELS):
        return None
    if min(sample.shape[:2]) < _SMALLEST:
        return None
    low, high = float(sample.min()), float(sample.max())
    scaled = (sample.astype(np.float64) - low) / (high - low) if high > low else np.zeros(sample.shape)
    return np.rint(_DARK + scaled * (_BRIGHT - _DARK)).astype(np.uint8)


def _text(sample: Tensor, files: Mapping[str, bytes]) -> str | None:
    """The words of one sample of tokens (T,); None where it is none, or there is no vocabulary."""
    from compress.data.csv import VOCABULARY_FILE
    from compress.data.tokenizer import Tokenizer

    if sample.ndim != 1 or sample.is_floating_point() or VOCABULARY_FILE not in files:
        return None
    return Tokenizer.from_json(files[VOCABULARY_FILE]).decode(sample.numpy())
