"""How good a quantized graph is: as the gate will see it, and in dB."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from pathlib import Path

import numpy as np
import onnx

from compress.data.splits import Split
from compress.files import write_atomically
from compress.measurement import Score, drop, interleave, outputs_of, score, top1
from compress.measurement.accuracy import Outputs
from compress.measurement.sessions import open_session
from compress.models.onnx_file import Array, run, serialize
from compress.quantization.graph import sqnr_db
from compress.values import Context, OnnxModel

Feed = dict[str, Array]

_DIGITS = 9  # of drops, which are differences of floats: one of exactly the budget is within it, as at the gate
_ONE_SIDED = 1.645  # standard deviations: 95 % of a normal distribution lie below
_ROUNDS = 7
_SECONDS = 0.15  # of timing one graph: enough to tell 5 %; what ships is timed by the benchmark stage


class Judge:
    """Scores graphs against the original model on the validation split, and against the float file on a few samples.

    Args:
        model: The float file.
        probe: Batches of calibration samples.
        context: With data; the original model where there is one, else the float file is what a drop is against.
    """

    def __init__(self, model: OnnxModel, probe: list[Feed], context: Context) -> None:
        assert context.data is not None
        self._model = model
        self._probe = probe
        self._split: Split = context.data.validation
        self._trial = context.directory / ".trial.onnx"
        self._reference: Outputs = outputs_of(context.original or model, self._split, device=context.device)
        self._baseline: Score = score(self._reference, self._reference)
        self._outputs = _flat(run(model.path, probe))

    def sqnr_db(self, proto: onnx.ModelProto) -> float:
        """Signal to quantization noise of the first output, over the probe."""
        return sqnr_db(self._outputs, _flat(run(serialize(proto), self._probe)))

    def drop(self, data: bytes) -> float:
        """What a graph loses on validation, as a fraction: of accuracy, or of fidelity where there are no labels."""
        return round(drop(score(self._outputs_of(data), self._reference), self._baseline), _DIGITS)

    def drop_bound(self, data: bytes) -> tuple[float, float]:
        """The drop, and what it stays below with 95 % confidence, as far as a split of this size can tell.

        A strength or a number of values that is searched for on validation is the one that luck favours there: it is
        held to the bound. The interval is Wald's for paired answers with half a sample added to each of the four cells
        (Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions"), which a few
        samples need. Only those that one of the two answers rightly, and the other not, tell anything.
        """
        outputs = self._outputs_of(data)
        lost, won = self._changes(outputs)
        size = len(outputs.values)
        added, center = size + 2, (lost - won) / (size + 2)
        deviation = sqrt(lost + won + 1 - added * center**2) / added
        return round((lost - won) / size, _DIGITS), round(center + _ONE_SIDED * deviation, _DIGITS)

    def _changes(self, outputs: Outputs) -> tuple[int, int]:
        """Samples that only the original answers rightly, and those that only the graph does."""
        ours, theirs = top1(outputs.values), top1(self._reference.values)
        if outputs.labels is None:  # what the original answers counts as right
            differ = (ours != theirs).reshape(len(ours), -1).any(axis=1)
            return int(differ.sum()), 0
        right, before = ours == outputs.labels, theirs == outputs.labels
        return int((before & ~right).sum()), int((right & ~before).sum())

    def _outputs_of(self, data: bytes) -> Outputs:
        onnx_model = OnnxModel(self._written(data), self._model.inputs, self._model.opset, self._model.task)
        try:
            return outputs_of(onnx_model, self._split)
        finally:
            self._trial.unlink()

    def p50_ms(self, data: bytes) -> tuple[float, float]:
        """Median latency of one sample, of a graph and of the float file, timed in turns at one thread."""
        feed = {name: array[:1] for name, array in self._probe[0].items()}
        sessions = [open_session(self._written(data), "cpu", 1), open_session(self._model.path, "cpu", 1)]
        self._trial.unlink()
        calls = [lambda session=session: session.run(None, feed) for session in sessions]
        taken = interleave(calls, seconds=_SECONDS, min_samples=_ROUNDS, rounds=_ROUNDS, seed=0)
        ours, theirs = (float(np.median(samples.samples_ms)) for samples in taken)
        return ours, theirs

    def _written(self, data: bytes) -> Path:
        write_atomically(self._trial, data)
        return self._trial


def _flat(batches: Iterable[list[Array]]) -> Array:
    """The first output of all batches, whose shapes may differ."""
    return np.concatenate([outputs[0].astype(np.float64).reshape(-1) for outputs in batches])
