"""What a model answers on a split: accuracy where there are labels, agreement with the original model everywhere, and
the user's own metric where one is given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import log10, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.errors import MeasurementError, first_line
from compress.measurement.environment import available_threads
from compress.measurement.intervals import share_interval
from compress.measurement.metrics import Metric, MetricValue, Rated
from compress.measurement.sessions import open_session
from compress.values import InputSpec, Model, OnnxModel, Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from compress.data.splits import Split

Run = Callable[[tuple["Tensor", ...]], NDArray[np.float32]]

TOP = 5  # classes, of top-5 accuracy: told where there are more than these
_ROWS = 256  # samples
_BATCH_BYTES = 2**24  # of the inputs: activations take tens of times as much, and must fit a small machine


@dataclass(frozen=True)
class Outputs:
    """A model's first output on every sample of a split, in the split's order."""

    values: NDArray[np.float32]  # (N, C, …)
    labels: NDArray[Any] | None  # (N,) class numbers; of any other shape and type for a metric


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers and its 95 % Wilson interval."""

    value: float  # 0..1
    low: float
    high: float
    n: int  # samples


@dataclass(frozen=True)
class Score:
    """How good a model's answers are."""

    accuracy: Accuracy | None  # None: no labels, or none that are classes
    fidelity: float  # 0..1: share of samples with the same top-1 as the original model
    n: int  # samples
    top5: Accuracy | None = None  # the label is among the five largest; None: as accuracy, or five classes or fewer
    metric: MetricValue | None = None  # of the user's own; None: none was given
    sqnr_db: float | None = None  # of the outputs, against the original's; None: they are the same, or all 0

    @property
    def figure(self) -> float:
        """The number that a drop is measured in: the metric where there is one, else accuracy, else fidelity."""
        if self.metric is not None:
            return self.metric.value
        return self.fidelity if self.accuracy is None else self.accuracy.value

    @property
    def measured_in(self) -> str:
        """What `figure` is: accuracy, fidelity, or the metric's name."""
        if self.metric is not None:
            return self.metric.name
        return "fidelity" if self.accuracy is None else "accuracy"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Score:
        kinds = {"accuracy": Accuracy, "top5": Accuracy, "metric": MetricValue}
        read = {name: kinds[name](**value) for name, value in stored.items() if name in kinds and value is not None}
        return cls(**{**stored, **read})


def outputs_of(
    model: Model | OnnxModel, split: Split, batch_size: int = 256, device: str = "cpu", progress: Progress = silent
) -> Outputs:
    """Run a model on every sample of a split.

    Args:
        model: A torch model runs on ``device``, an ONNX file on the CPU with every core that is available.
        split: At least one sample.
        batch_size: Samples at a time, at most: fewer where samples are large. An ONNX file that takes the ranges of its
            activations at run time takes them over the whole batch: it runs one sample at a time.
        device: Of torch; a module that is not there yet is copied.
        progress: Told after every batch.

    Raises:
        MeasurementError: the split is empty, or an ONNX file does not run on its samples, or an output is not finite,
            or not one answer a sample.
    """
    run = _torch_run(model, device) if isinstance(model, Model) else _onnx_run(model)
    size = 1 if isinstance(model, OnnxModel) and _is_dynamic(model) else _fitting(batch_size, model.inputs)
    values: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    done = 0
    for inputs, targets in split.batches(size):
        output = run(inputs)
        _check(output, len(inputs[0]), split, done)
        values.append(output)
        if targets is not None:
            labels.append(_plain(targets))
        done += len(output)
        progress(f"scoring {split.name}", done, len(split))
    if not values:
        raise MeasurementError(f"the {split.name} split is empty; at least one sample is needed to score a model.")
    return Outputs(np.concatenate(values), np.concatenate(labels) if labels else None)


def top1(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class that each answer stands for.

    Args:
        values: (N, C, …); a single column, or (N,), is the logit of a yes-or-no question.

    Returns:
        (N, …): the index of the largest of axis 1, or 1 where a single logit is above 0.
    """
    if values.ndim == 1 or values.shape[1] == 1:
        logits = values if values.ndim == 1 else values[:, 0]
        return (logits > 0).astype(np.int64)
    chosen: NDArray[np.int64] = values.argmax(axis=1)
    return chosen


def accuracy(outputs: Outputs) -> Accuracy:
    """Share of samples whose top-1 is their label.

    Raises:
        MeasurementError: there are no labels, or not one a prediction.
    """
    if outputs.labels is None:
        raise MeasurementError("accuracy needs labels and this data has none; use fidelity.")
    predicted = top1(outputs.values)
    if predicted.shape != outputs.labels.shape or predicted.ndim != 1:
        raise MeasurementError(
            f"outputs of shape {outputs.values.shape} give predictions of shape {predicted.shape}, but the labels have "
            f"shape {outputs.labels.shape}. One label a sample is allowed; give --metric for others, or --no-labels."
        )
    return _share(predicted == outputs.labels)


def top5(outputs: Outputs) -> Accuracy | None:
    """Share of samples whose label is among the five largest; None where there are no more classes, or no labels.

    Of equal values those of the lower classes come first, as with top-1.
    """
    values, labels = outputs.values, outputs.labels
    if labels is None or values.ndim != 2 or values.shape[1] <= TOP or labels.shape != values.shape[:1]:
        return None
    known = (labels >= 0) & (labels < values.shape[1])
    own = np.take_along_axis(values, np.where(known, labels, 0)[:, None], axis=1)  # (N, 1)
    before = np.arange(values.shape[1]) < labels[:, None]  # (N, C)
    rank = (values > own).sum(axis=1) + ((values == own) & before).sum(axis=1)  # (N,)
    return _share(known & (rank < TOP))


def _share(right: NDArray[np.bool_]) -> Accuracy:
    count, n = int(right.sum()), len(right)
    return Accuracy(count / n, *share_interval(count, n), n)


def fidelity(outputs: Outputs, reference: Outputs) -> float:
    """Share of predictions that are those of the original model, 0..1.

    Raises:
        MeasurementError: the two do not have the same shape.
    """
    ours, theirs = top1(outputs.values), top1(reference.values)
    if ours.shape != theirs.shape:
        raise MeasurementError(
            f"predictions of shape {ours.shape} cannot be compared with the original's {theirs.shape}. "
            "Both models must answer the same samples with the same classes."
        )
    return float((ours == theirs).mean())


def score(outputs: Outputs, reference: Outputs, metric: Metric | None = None) -> Score:
    """Score answers against the labels, where there are any, and against the original model's answers.

    Args:
        outputs: Of the model.
        reference: Of the original, on the same samples.
        metric: The user's own, whose value comes without an interval here. With one, labels may be anything, and there
            is accuracy where they are classes.
    """
    return score_rated(outputs, reference, None if metric is None else metric.rate(outputs))


def score_rated(outputs: Outputs, reference: Outputs, rated: Rated | None, seed: int | None = None) -> Score:
    """`score`, with what a metric has already said of the outputs; with a ``seed`` also its interval."""
    classes = outputs.labels is not None and (rated is None or has_classes(outputs))
    return Score(
        accuracy=accuracy(outputs) if classes else None,
        fidelity=fidelity(outputs, reference),
        n=len(outputs.values),
        top5=top5(outputs) if classes else None,
        metric=None if rated is None else rated.told(seed),
        sqnr_db=sqnr_db(outputs, reference),
    )


def has_classes(outputs: Outputs) -> bool:
    """Whether the labels are numbers of the classes that the outputs score, one a sample."""
    values, labels = outputs.values, outputs.labels
    if (
        labels is None
        or labels.shape != values.shape[:1]
        or values.ndim > 2
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        return False
    classes = 2 if values.ndim == 1 else max(2, values.shape[1])
    return bool(((labels >= 0) & (labels < classes)).all())


def sqnr_db(outputs: Outputs, reference: Outputs) -> float | None:
    """How far the outputs are from the original's, in dB: 10 log10(sum of reference² / sum of (reference - outputs)²).

    None where it has no finite value: the outputs are equal, or the original's are all 0.
    """
    if outputs.values is reference.values or outputs.values.shape != reference.values.shape:
        return None
    signal = noise = 0.0
    for start in range(0, len(outputs.values), _ROWS):  # not the whole in float64
        theirs = reference.values[start : start + _ROWS].astype(np.float64)
        signal += float(np.square(theirs).sum())
        noise += float(np.square(theirs - outputs.values[start : start + _ROWS]).sum())
    return 10 * log10(signal / noise) if signal > 0 and noise > 0 else None


def drop(score: Score, baseline: Score) -> float:
    """What was lost against the baseline: a fraction of accuracy, or of fidelity without labels, or in the metric's own
    unit. May be below 0."""
    return baseline.figure - score.figure


def _is_dynamic(model: OnnxModel) -> bool:
    """Whether a sample's answer depends on the others of its batch, since scales are taken over all of it."""
    graph = onnx.load(str(model.path), load_external_data=False).graph
    return any(str(node.op_type).startswith("DynamicQuantize") for node in graph.node)


def _fitting(batch_size: int, inputs: tuple[InputSpec, ...]) -> int:
    sample = sum(prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in inputs)
    return max(1, min(batch_size, _BATCH_BYTES // max(1, sample)))


def _check(output: NDArray[np.float32], batch: int, split: Split, done: int) -> None:
    """Refuse one batch of answers that is not one finite answer a sample."""
    if output.shape[:1] != (batch,):
        raise MeasurementError(
            f"a batch of {batch} samples gives an output of shape {output.shape}. Axis 0 must be the batch."
        )
    bad = ~np.isfinite(output).reshape(len(output), -1).all(axis=1)
    if bad.any():
        number = int(split.indices[done + int(bad.argmax())])
        raise MeasurementError(
            f"the model's output is not finite for sample {number} of the {split.name} split. "
            "Look for NaN in that sample and in the weights."
        )


def _plain(targets: Tensor) -> NDArray[Any]:
    """Labels as numpy has them: whole numbers as int64, the others as they come."""
    labels: NDArray[Any] = targets.numpy()
    return labels if np.issubdtype(labels.dtype, np.floating) else labels.astype(np.int64)


def _onnx_run(model: OnnxModel) -> Run:
    session = open_session(model.path, "cpu", available_threads())

    def run(inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
        given = feeds(model.inputs, inputs)
        try:
            output = session.run(None, given)[0]
        except Exception as error:  # onnxruntime's errors have no common base of their own
            told = ", ".join(f"{name} {array.shape[1:]}" for name, array in given.items())
            raise MeasurementError(f"does not run on samples of {told}: {first_line(error)}") from error
        return np.asarray(output, np.float32)

    return run


def feeds(specs: tuple[InputSpec, ...], inputs: tuple[Tensor, ...]) -> dict[str, NDArray[Any]]:
    """A batch as ONNX Runtime takes it: by name, in the exact type that the graph declares.

    Raises:
        MeasurementError: another number of inputs than the model has.
    """
    if len(specs) != len(inputs):
        names = ", ".join(spec.name for spec in specs)
        raise MeasurementError(
            f"the model takes {len(specs)} inputs ({names}), a sample of the data has {len(inputs)}."
        )
    return {spec.name: x.numpy().astype(spec.dtype, copy=False) for spec, x in zip(specs, inputs, strict=True)}


def _torch_run(model: Model, device: str) -> Run:
    # Here and not above: `compress doctor` passes by this module, and must run where torch cannot be imported.
    import torch
    from torch.utils import _pytree

    module = model.module
    if any(tensor.device.type != torch.device(device).type for tensor in _state(module)):
        module = copy.deepcopy(module).to(device)

    def run(inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result = module(*(x.to(device) for x in inputs))
        first = next((leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)), None)
        if first is None:
            raise MeasurementError(f"the model returns {type(result).__name__} without a tensor in it; return tensors.")
        values: NDArray[np.float32] = first.float().cpu().numpy()
        return values

    return run


def _state(module: Any) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
