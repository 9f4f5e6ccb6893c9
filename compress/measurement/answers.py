"""Every variant's answers on a split, against the baseline's on the same samples."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import MeasurementError
from compress.files import write_atomically
from compress.measurement.accuracy import Outputs, Score, drop, outputs_of, score_rated, top1
from compress.measurement.intervals import CONFIDENCE, Interval, drop_interval, mean_interval
from compress.measurement.metrics import Metric, Rated
from compress.measurement.significance import McNemar, mcnemar
from compress.values import Context, Variant

if TYPE_CHECKING:
    from compress.data.splits import Split
    from compress.measurement.stage import BenchmarkConfig

CLASSES = 100  # in the report at most: of more, those whose accuracy changed most
_TOP1, _VALUES, _LABELS = "top1/", "values/", "labels"  # names in the file of answers


@dataclass(frozen=True)
class ClassScore:
    """Accuracy on the samples of one class."""

    label: int
    n: int  # samples
    baseline: float  # 0..1
    accuracy: float
    drop: float


@dataclass(frozen=True)
class Answers:
    """A variant's score, and what it lost against the baseline, sample by sample."""

    score: Score
    drop: float  # of `Score.figure`: 0 of the baseline itself
    drop_low: float | None  # 95 % interval, paired; None: the baseline itself, or as of a metric
    drop_high: float | None
    mcnemar: McNemar | None = None  # against the baseline; None: the baseline itself, or no labels that are classes
    classes: tuple[ClassScore, ...] | None = None  # the largest drop first; None: as mcnemar

    def to_dict(self) -> dict[str, Any]:
        return {
            "score": self.score.to_dict(),
            "drop": self.drop,
            "drop_low": self.drop_low,
            "drop_high": self.drop_high,
            "mcnemar": None if self.mcnemar is None else _told(self.mcnemar),
            "classes": None if self.classes is None else [asdict(entry) for entry in self.classes],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Answers:
        test, classes = stored["mcnemar"], stored["classes"]
        return cls(
            score=Score.from_dict(stored["score"]),
            drop=stored["drop"],
            drop_low=stored["drop_low"],
            drop_high=stored["drop_high"],
            mcnemar=None if test is None else McNemar(test["only_baseline"], test["only_variant"], test["p"]),
            classes=None if classes is None else tuple(ClassScore(**entry) for entry in classes),
        )


@dataclass(frozen=True)
class Kept:
    """The answers of a run's variants to one split, as `compress compare` sets them against another run's."""

    labels: NDArray[np.int64] | None  # (N,); None: none that are classes
    top1: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # (N,) a variant
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # (N,) of a metric with one value a sample


def score_all(
    variants: Sequence[Variant], split: Split, config: BenchmarkConfig, context: Context, keep: Path | None = None
) -> list[Answers]:
    """Run every variant on a split, once. The outputs of two variants are in memory at a time: the first one's, too.

    Args:
        variants: The first is the baseline.
        split: At least one sample.
        config: For the batch size.
        context: For the metric, the seed of the bootstrap and the progress.
        keep: Where each variant's answers are written, see `load_answers`. None: nowhere.

    Raises:
        MeasurementError: a variant does not run, or gives outputs that are not finite, or the metric fails.
    """
    baseline: Scored | None = None
    found: list[Answers] = []
    top: dict[str, NDArray[np.int64]] = {}
    values: dict[str, NDArray[np.float64]] = {}
    for number, variant in enumerate(variants):
        try:
            outputs = outputs_of(variant.onnx, split, config.accuracy_batch)
            scored = rate(outputs, baseline.outputs if baseline else outputs, context.metric, context.seed)
        except MeasurementError as error:
            raise MeasurementError(f"{variant.name}: {error}") from error
        found.append(_answers(scored, baseline, context.seed))
        if scored.top1.ndim == 1:
            top[variant.name] = scored.top1
        if scored.rated is not None and scored.rated.each is not None:
            values[variant.name] = scored.rated.each
        baseline = baseline or scored
        del outputs, scored  # before the next ones are made
        context.progress(f"scoring on {split.name}", number + 1, len(variants), variant.name)
    if keep is not None and baseline is not None:
        _write(keep, Kept(baseline.outputs.labels if baseline.right is not None else None, top, values))
    return found


def load_answers(path: Path) -> Kept:
    """What `score_all` kept.

    Raises:
        MeasurementError: the file is missing or broken.
    """
    try:
        with path.open("rb") as stream:  # numpy leaves a file open whose zip directory it cannot read
            stored = np.load(stream, allow_pickle=False)
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise MeasurementError(f"{path} cannot be read ({error}). `compress benchmark` writes it anew.") from error
    labels = arrays.get(_LABELS)
    return Kept(
        labels=None if labels is None else labels.astype(np.int64),
        top1={n.removeprefix(_TOP1): a.astype(np.int64) for n, a in arrays.items() if n.startswith(_TOP1)},
        values={n.removeprefix(_VALUES): a.astype(np.float64) for n, a in arrays.items() if n.startswith(_VALUES)},
    )


@dataclass(frozen=True)
class Scored:
    """A model's outputs, and what is made of them once."""

    outputs: Outputs
    score: Score  # with the metric's interval
    top1: NDArray[np.int64]  # (N, …)
    right: NDArray[np.bool_] | None  # (N,); None: no labels that are classes
    rated: Rated | None


def rate(outputs: Outputs, reference: Outputs, metric: Metric | None, seed: int) -> Scored:
    """Score outputs, with what `paired_interval` needs besides; ``seed`` is the bootstrap's of a metric."""
    rated = None if metric is None else metric.resample(metric.rate(outputs), outputs, seed)
    score = score_rated(outputs, reference, rated, seed)
    chosen = top1(outputs.values)
    return Scored(outputs, score, chosen, None if score.accuracy is None else chosen == outputs.labels, rated)


def _answers(scored: Scored, baseline: Scored | None, seed: int) -> Answers:
    if baseline is None:
        return Answers(scored.score, 0.0, None, None)
    low, high = paired_interval(scored, baseline, seed) or (None, None)
    lost = drop(scored.score, baseline.score)
    if scored.right is None or baseline.right is None:
        return Answers(scored.score, lost, low, high)
    labels = baseline.outputs.labels
    assert labels is not None
    classes = class_scores(baseline.right, scored.right, labels)
    return Answers(scored.score, lost, low, high, mcnemar(baseline.right, scored.right), classes)


def paired_interval(scored: Scored, baseline: Scored, seed: int, confidence: float = CONFIDENCE) -> Interval | None:
    """Of what a model loses of `Score.figure` against the baseline, on the same samples.

    Of accuracy it is `drop_interval`; of fidelity, which the baseline has all of, the interval of a share; of a metric
    a bootstrap, or None where the function is too slow for one; None too where one sample is all there is to draw.
    """
    if scored.rated is not None and baseline.rated is not None:
        return scored.rated.drop_interval(baseline.rated, seed, confidence)
    if scored.right is not None and baseline.right is not None:
        lost, won = baseline.right & ~scored.right, scored.right & ~baseline.right
        return drop_interval(int(lost.sum()), int(won.sum()), len(lost), confidence)
    changed = (scored.top1 != baseline.top1).reshape(len(scored.top1), -1).mean(axis=1)  # (N,) of fidelity
    return mean_interval(changed, seed, confidence)


def class_scores(
    baseline: NDArray[np.bool_], variant: NDArray[np.bool_], labels: NDArray[np.int64], most: int = CLASSES
) -> tuple[ClassScore, ...]:
    """Accuracy by class, the largest drop first; of more than ``most`` classes those that changed most.

    Args:
        baseline: (N,) whether the baseline answered rightly.
        variant: (N,) whether the variant did.
        labels: (N,)
    """
    known, place = np.unique(labels, return_inverse=True)
    counts, ours, theirs = (np.bincount(place, weights) for weights in (None, variant, baseline))
    scores = [
        ClassScore(int(label), int(n), float(before / n), float(after / n), float((before - after) / n))
        for label, n, before, after in zip(known, counts, theirs, ours, strict=True)
    ]
    changed = sorted(scores, key=lambda entry: (-abs(entry.drop), entry.label))[:most]
    return tuple(sorted(changed, key=lambda entry: (-entry.drop, entry.label)))


def _told(test: McNemar) -> dict[str, Any]:
    return {"only_baseline": test.only_reference, "only_variant": test.only_changed, "p": test.p}


def _write(path: Path, kept: Kept) -> None:
    """As an .npz that is the same, byte for byte, for the same answers: numpy dates the files in it 1980."""
    arrays: dict[str, Any] = {_TOP1 + name: _small(values) for name, values in kept.top1.items()}
    arrays |= {_VALUES + name: values for name, values in kept.values.items()}
    if kept.labels is not None:
        arrays[_LABELS] = _small(kept.labels)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def _small(values: NDArray[np.int64]) -> NDArray[Any]:
    """The same numbers in 16 bits, or in 32 where there are more classes."""
    return values.astype(np.int16 if np.abs(values).max(initial=0) < 2**15 else np.int32)
