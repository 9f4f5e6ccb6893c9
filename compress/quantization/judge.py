"""How good a quantized graph is: as the gate will see it, and in dB."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from compress.data.splits import Split
from compress.files import write_atomically
from compress.measurement import Score, drop, interleave, outputs_of, score
from compress.measurement.accuracy import Outputs
from compress.measurement.answers import Scored, paired_interval, rate
from compress.measurement.sessions import open_session
from compress.models.onnx_file import Array, run, serialize
from compress.quantization.graph import sqnr_db
from compress.values import Context, OnnxModel

Feed = dict[str, Array]

_DIGITS = 9  # of drops, which are differences of floats: one of exactly the budget is within it, as at the gate
_TWO_SIDED = 0.9  # confidence of an interval whose upper end is a one-sided bound of 95 %
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
        self._model, self._context = model, context
        self._probe = probe
        self._split: Split = context.data.validation
        self._trial = context.directory / ".trial.onnx"
        self._reference: Outputs = outputs_of(context.original or model, self._split, device=context.device)
        self._baseline: Score = score(self._reference, self._reference, context.metric)
        self._outputs = _flat(run(model.path, probe))

    def sqnr_db(self, proto: onnx.ModelProto) -> float:
        """Signal to quantization noise of the first output, over the probe."""
        return sqnr_db(self._outputs, _flat(run(serialize(proto), self._probe)))

    def drop(self, data: bytes) -> float:
        """What a graph loses on validation: see `compress.measurement.drop`."""
        found = score(self._outputs_of(data), self._reference, self._context.metric)
        return round(drop(found, self._baseline), _DIGITS)

    def drop_bound(self, data: bytes) -> tuple[float, float]:
        """The drop, and what it stays below with 95 % confidence, as far as a split of this size can tell.

        A strength or a number of values that is searched for on validation is the one that luck favours there: it is
        held to the bound. It is the upper end of the report's interval, one-sided; of a metric too slow to resample
        there is none, and it is the drop itself.
        """
        metric, seed = self._context.metric, self._context.seed
        found = rate(self._outputs_of(data), self._reference, metric, seed)
        interval = paired_interval(found, self._original, seed, _TWO_SIDED)
        lost = round(drop(found.score, self._baseline), _DIGITS)
        return lost, lost if interval is None else round(interval[1], _DIGITS)

    @cached_property
    def _original(self) -> Scored:
        return rate(self._reference, self._reference, self._context.metric, self._context.seed)

    def _outputs_of(self, data: bytes) -> Outputs:
        onnx_model = OnnxModel(self._written(data), self._model.inputs, self._model.opset, self._model.task)
        try:
            return outputs_of(onnx_model, self._split)
        finally:
            self._trial.unlink()

    def p50_ms(self, data: bytes) -> tuple[float, float]:
        """Median latency of one sample, of a graph and of the float file, timed in turns at one thread.

        Both in this process, once: many candidates are searched through. What ships is timed by the benchmark stage.
        """
        feed = {name: array[:1] for name, array in self._probe[0].items()}
        sessions = [open_session(self._written(data), "cpu", 1), open_session(self._model.path, "cpu", 1)]
        self._trial.unlink()
        calls = [lambda session=session: session.run(None, feed) for session in sessions]
        taken = interleave(calls, seconds=_SECONDS, min_samples=_ROUNDS, rounds=_ROUNDS, seed=0)
        return taken[0].p50_ms, taken[1].p50_ms

    def _written(self, data: bytes) -> Path:
        write_atomically(self._trial, data)
        return self._trial


def _flat(batches: Iterable[list[Array]]) -> Array:
    """The first output of all batches, whose shapes may differ."""
    return np.concatenate([outputs[0].astype(np.float64).reshape(-1) for outputs in batches])
