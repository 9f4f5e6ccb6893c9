"""Learned rounding: whether each integer weight is rounded up or down, by what it does to its layer's output.

AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"), with the asymmetric
reconstruction of its section 3.3: a layer gets the inputs that the quantized graph gives it, its earlier layers rounded
already, and is held to the outputs of the float graph after the activation. It works from the ONNX graph, so that a
model that came as .onnx is served too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import cos, pi

import numpy as np
import onnx
import torch
from torch import Tensor

from compress.errors import QuantizationError, RecipeError
from compress.models.onnx_file import Array
from compress.quantization.graph import copy_of, inner_values, replace_constants, sqnr_db
from compress.quantization.reconstruction import (
    Batches,
    Problem,
    Rows,
    draw,
    is_held_out,
    positions,
    problems,
    rows_sqnr_db,
)
from compress.values import Progress, silent

logger = logging.getLogger(__name__)

_ZETA, _GAMMA = 1.1, -0.1  # the stretched sigmoid reaches 0 and 1 (Louizos et al. 2018)
_SHARPNESS = (20.0, 2.0)  # exponent of the regularizer, at first and at last
_FEWEST = 8  # samples
# A layer is left alone where float weights would gain less: the rest of its error comes from activations. Measured on
# mobilenet_v2, per tensor: half of its 53 layers are, and the outputs gain as much.
_WORTHWHILE_DB = 0.2


@dataclass(frozen=True)
class RoundingConfig:
    """How rounding is learned, for each layer.

    The paper's loss depends on the scale of a model's values; here it is the squared error over that of rounding to
    nearest, times the number of weights. Its defaults are from the CNN of the fine-grained pruning example at 4 bits,
    after 300 steps: 26.3, 28.0 and 29.6 dB in its second layer with this regularizer at rates .01, .03 and .1, 25 dB
    with a tenth of it, 24 dB with the paper's regularizer and rate.
    """

    steps: int = 400  # of Adam, 1 or more
    batch_size: int = 128  # output positions (pixels, tokens, samples) in a step, 1 or more
    rows: int = 8192  # output positions held, drawn evenly from all samples, 1 or more
    learning_rate: float = 0.05  # above 0
    regularizer: float = 10.0  # of the term that pushes each weight up or down, in units of its share of the error
    warm_up: float = 0.2  # fraction of the steps without that term, below 1

    def __post_init__(self) -> None:
        whole = [f"rounding.{n}={getattr(self, n)}" for n in ("steps", "batch_size", "rows") if getattr(self, n) < 1]
        if whole:
            raise RecipeError(f"{', '.join(whole)}: allowed are whole numbers from 1.")
        if self.learning_rate <= 0 or self.regularizer <= 0:
            found = f"rounding.learning_rate={self.learning_rate}, rounding.regularizer={self.regularizer}"
            raise RecipeError(f"{found}: allowed are numbers above 0.")
        if not 0 <= self.warm_up < 1:
            raise RecipeError(f"rounding.warm_up={self.warm_up}: allowed are numbers from 0 to below 1.")


@dataclass(frozen=True)
class RoundedLayer:
    """What learned rounding did to a layer. The decibels: SQNR of its output, on samples that it did not learn from."""

    nearest_db: float  # with the integers that the graph came with
    float_db: float  # with float weights: what is left is the error of its inputs
    learned_db: float  # with the learned integers; nearest_db where there was too little to gain
    moved: float  # fraction of the integers that learning changed
    kept: bool  # whether the learned integers are better, and so in the graph


def learn_rounding(
    float_proto: onnx.ModelProto,
    quantized_proto: onnx.ModelProto,
    feeds: Batches,
    config: RoundingConfig | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[onnx.ModelProto, dict[str, RoundedLayer]]:
    """Round the integer weights of a quantized graph so that its layers' outputs are closest to the float graph's.

    Conv in any number of dimensions, Gemm and MatMul whose weight ``w`` is stored as the integers ``w_quantized``, of
    any number of bits, times ``w_scale``. Only those integers change: each becomes the one below or above its float
    value, within the smallest and the largest that its tensor has now. A float weight of exactly zero stays at the zero
    point. A layer keeps what it learned if that is better on the fourth of the samples that is held out; the graph
    does if its outputs are closer to float there, else it is returned as it came.

    Args:
        float_proto: Its nodes have unique names.
        quantized_proto: Made from it.
        feeds: Calibration batches by input name, 8 samples or more; iterated for every layer.
        config: Of the learning.
        seed: Of the positions and the mini-batches. Equal arguments give equal bytes.
        progress: Told after each layer.

    Returns:
        The graph, and figures by layer name, in the order in which the layers run.

    Raises:
        QuantizationError: there are fewer than 8 samples.
    """
    config = config or RoundingConfig()
    samples = sum(_size(feed) for feed in feeds)
    if samples < _FEWEST:
        raise QuantizationError(
            f"learned rounding was given {samples} calibration samples; it needs {_FEWEST} or more."
        )
    learned = copy_of(quantized_proto)
    figures: dict[str, RoundedLayer] = {}
    found = problems(float_proto, quantized_proto)
    for number, problem in enumerate(found):
        rng = np.random.default_rng([seed, number])
        each = positions(problem, config.rows, samples)
        train, held_out = draw(problem, float_proto, learned, feeds, each, rng)
        figure, levels = _round(problem, train, held_out, config, seed + number)
        figures[problem.layer.name] = figure
        if figure.kept:
            replace_constants(learned, {problem.stored.name: problem.stored.integers(problem.ungrouped(levels))})
        note = f"{problem.layer.name} {figure.nearest_db:.1f} -> {figure.learned_db:.1f} dB"
        progress("learned rounding", number + 1, len(found), note)
    before, after = (_outputs_db(float_proto, proto, feeds) for proto in (quantized_proto, learned))
    if after > before:
        return learned, figures
    logger.info("learned rounding is left out: the outputs have %.1f dB with it, %.1f dB without", after, before)
    return copy_of(quantized_proto), figures


def _round(
    problem: Problem, train: Rows, held_out: Rows, config: RoundingConfig, seed: int
) -> tuple[RoundedLayer, Tensor]:
    """What came of a layer, and its levels."""
    nearest = problem.grouped(problem.stored.levels)
    before, bound = (rows_sqnr_db(problem, levels, held_out) for levels in (nearest, problem.grouped(problem.weight)))
    if not bound - before >= _WORTHWHILE_DB:  # neither where both are infinite: a layer that is always 0
        return RoundedLayer(before, bound, before, 0.0, kept=False), nearest
    levels = _learn(problem, train, config, seed)
    after = rows_sqnr_db(problem, levels, held_out)
    moved = float((levels != nearest).double().mean())
    return RoundedLayer(before, bound, after, moved, kept=after > before), levels


def _learn(problem: Problem, rows: Rows, config: RoundingConfig, seed: int) -> Tensor:
    """The learned levels, (G, C_out / G, K)."""
    weight, nearest, scale = (
        problem.grouped(values) for values in (problem.weight, problem.stored.levels, problem.stored.scale)
    )
    low, high = float(nearest.min()), float(nearest.max())
    floor, fixed = weight.floor(), weight == 0
    noise = (problem.outputs(nearest * scale, rows.inputs) - problem.clamp(rows.targets)).square().sum()
    unit = nearest.numel() * len(rows.inputs) / max(float(noise), 1e-30)  # so that no option depends on a model's scale
    part = (weight - floor).clamp(1e-4, 1 - 1e-4)
    variable = torch.logit((part - _GAMMA) / (_ZETA - _GAMMA)).requires_grad_()  # learning starts at the float weight
    optimizer = torch.optim.Adam([variable], lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(config.steps):
        chosen = torch.randint(len(rows.inputs), (config.batch_size,), generator=generator)
        up = _rectified(variable)
        soft = torch.where(fixed, nearest, (floor + up).clamp(low, high))
        error = problem.outputs(soft * scale, rows.inputs[chosen]) - problem.clamp(rows.targets[chosen])
        loss = unit * error.square().sum() / len(chosen)
        progress = (step / config.steps - config.warm_up) / (1 - config.warm_up)
        if progress > 0:
            loss = loss + config.regularizer * _undecided(up, progress)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return torch.where(fixed, nearest, (floor + (_rectified(variable) >= 0.5)).clamp(low, high))


def _rectified(variable: Tensor) -> Tensor:
    """The share of a level that a weight is rounded up by, 0..1."""
    return (torch.sigmoid(variable) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def _undecided(up: Tensor, progress: float) -> Tensor:
    """The regularizer: 0 where every weight is up or down."""
    first, last = _SHARPNESS
    exponent = last + (first - last) * (1 + cos(pi * progress)) / 2
    return (1 - (2 * up - 1).abs().pow(exponent)).sum()


def _outputs_db(float_proto: onnx.ModelProto, proto: onnx.ModelProto, feeds: Batches) -> float:
    """SQNR of the graph's outputs on the samples that are held out."""
    names = [value.name for value in proto.graph.output]
    wanted: list[Array] = []
    found: list[Array] = []
    first = 0
    for reference, ours in zip(inner_values(float_proto, names, feeds), inner_values(proto, names, feeds), strict=True):
        size = len(reference[names[0]])
        judges = is_held_out(first + np.arange(size))
        first += size
        wanted += [reference[name][judges].reshape(-1) for name in names]
        found += [ours[name][judges].reshape(-1) for name in names]
    return sqnr_db(np.concatenate(wanted), np.concatenate(found))


def _size(feed: dict[str, Array]) -> int:
    return len(next(iter(feed.values())))
