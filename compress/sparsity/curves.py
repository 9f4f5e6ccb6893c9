"""Compression curves: accuracy against the share of weights removed, for several methods side by side."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property, partial
from itertools import chain
from typing import Literal, NamedTuple

from torch import Tensor, nn

from compress.data.splits import Data, Split
from compress.errors import RecipeError, SparsityError
from compress.measurement import outputs_of, score
from compress.sparsity.curve_points import Curves, Run, summarise_runs
from compress.sparsity.layer_allocation import at_total
from compress.sparsity.masking import Masking
from compress.sparsity.masks import Scope, Score, resolve_layers, sparsifiable
from compress.sparsity.sensitivity import figure_of, scan, suggest
from compress.training.finetune import FineTuneConfig, finetune, plan_steps, thaw
from compress.training.gradients import mean_gradients
from compress.training.teacher import Teacher, teacher_of
from compress.values import Context, Model, Progress

logger = logging.getLogger(__name__)

MOST_RATES = 1000  # more is a step that was mistyped
FINE_TUNED = "+finetune"
LABEL = "compression curves"  # of the progress
# What the sensitivity scan says can lose nothing still loses a little, or no high rate could be reached.
LEAST_SUGGESTED = 0.01

Tell = Callable[[str], None]  # told what a run is at


class Ranking(NamedTuple):
    """Which weights go first."""

    score: Score
    scope: Scope


METHODS: Mapping[str, Ranking] = {
    "random": Ranking("random", "global"),
    "layer": Ranking("magnitude", "layer"),  # the same share of each layer
    "flat": Ranking("magnitude", "global"),
    "lamp": Ranking("lamp", "global"),
    "taylor": Ranking("taylor", "global"),
    "custom": Ranking("magnitude", "layer"),  # each layer its own share
}


@dataclass(frozen=True)
class CurveConfig:
    """Which curves are drawn, and how their points are made."""

    methods: tuple[str, ...] = ("random", "layer", "flat", "lamp")  # of METHODS, each alone or as NAME+finetune
    rates: str = "0:0.9:0.1"  # shares 0 <= rate < 1 of the weights removed: start:stop:step with the stop, or single
    seeds: int = 3  # runs of what is random, from --seed upwards: random, and all that is fine-tuned
    layers: Mapping[str, float] = field(default_factory=dict)  # of custom: layer -> sparsity; empty: by the scan
    epochs: float = 3.0  # passes over the training split for each fine-tuned point
    ramp: float = 0.6  # share 0..1 of the fine-tuning in which sparsity rises (cubic); the rest recovers
    split: Literal["test", "validation"] = "test"  # where points are scored; nothing is tuned on it
    budget: float = 0.01  # of the scan that suggests layers: the drop, 0..1, that the dictionary may cost on validation
    samples: int = 1000  # of the same scan: validation samples at most
    keep: tuple[str, ...] = ()  # name patterns of parameters that stay dense (fnmatch: "fc2.*")
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        problems = [*_method_problems(self.methods), *_rate_problems(self.rates)]
        for name, value in (("seeds", self.seeds), ("samples", self.samples)):
            if value < 1:
                problems.append(f"{name}={value} must be at least 1")
        if not self.epochs > 0:
            problems.append(f"epochs={self.epochs} must be above 0")
        if not 0 <= self.ramp < 1:
            problems.append(f"ramp={self.ramp} must be within 0 <= ramp < 1")
        if not 0 <= self.budget <= 1:
            problems.append(f"budget={self.budget} must be within 0..1")
        for name, share in self.layers.items():
            if not 0 <= share < 1:
                problems.append(f"layers: {name}={share} must be within 0 <= sparsity < 1")
        if problems:
            raise RecipeError("; ".join(problems))

    def seeds_of(self, method: str, rate: float, first: int) -> range:
        """The seeds of one point: one where nothing is random, and at rate 0, which is the dense model as it is."""
        drawn = method.startswith("random") or method.endswith(FINE_TUNED)
        return range(first, first + (self.seeds if drawn and rate > 0 else 1))

    def wanted(self, first: int) -> Iterator[tuple[str, float, int]]:
        """Method, rate and seed of every run, in the order of the files. ``first``: the first seed."""
        for method in self.methods:
            for rate in parse_rates(self.rates):
                for seed in self.seeds_of(method, rate, first):
                    yield method, rate, seed


def parse_rates(text: str) -> tuple[float, ...]:
    """Rates in rising order, each once, from ``start:stop:step`` (with the stop) and single numbers, comma-separated.

    Decimal arithmetic: 0:0.9:0.1 holds 0.3, not 0.30000000000000004.

    Raises:
        RecipeError: a part that cannot be read, a step that misses its stop, or a rate outside 0 <= rate < 1.
    """
    rates = sorted(set(chain.from_iterable(_expanded(part.strip()) for part in text.split(","))))
    outside = [rate for rate in rates if not 0 <= rate < 1]
    if outside:
        raise RecipeError(f"rates={text}: {outside[-1]} is not within 0 <= rate < 1")
    return tuple(float(rate) for rate in rates)


def _expanded(part: str) -> list[Decimal]:
    try:
        numbers = [Decimal(piece) for piece in part.split(":")]
    except InvalidOperation:
        numbers = []
    if len(numbers) not in (1, 3) or not all(number.is_finite() for number in numbers):
        raise RecipeError(f"rates: {part!r} is neither a number nor start:stop:step, as 0:0.9:0.1")
    if len(numbers) == 1:
        return numbers
    start, stop, step = numbers
    if step <= 0 or stop < start or (stop - start) / step >= MOST_RATES:
        raise RecipeError(f"rates: {part} needs start <= stop, a step above 0, and at most {MOST_RATES} rates")
    count = int((stop - start) / step)
    last = start + count * step
    if last != stop:
        raise RecipeError(
            f"rates: {part} does not end at {stop}. Write {start}:{last}:{step}, and {stop} after a comma"
        )
    return [start + number * step for number in range(count + 1)]


def _rate_problems(text: str) -> list[str]:
    try:
        rates = parse_rates(text)
    except RecipeError as error:
        return [str(error)]
    return [] if len(rates) > 1 else [f"rates={text}: a curve needs at least two rates"]


def _method_problems(methods: tuple[str, ...]) -> list[str]:
    known = [name + suffix for name in METHODS for suffix in ("", FINE_TUNED)]
    problems = [] if methods else ["methods: name at least one"]
    for method in methods:
        if method not in known:
            near = difflib.get_close_matches(method, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METHODS)}, each also as NAME{FINE_TUNED}"
            problems.append(f"unknown method {method!r}: {hint}")
    repeated = sorted({method for method in methods if methods.count(method) > 1})
    return problems + [f"methods: {', '.join(repeated)} named twice"] * bool(repeated)


def suggest_layers(model: Model, config: CurveConfig, context: Context) -> dict[str, float]:
    """The dictionary for custom where none is given: parameter name -> sparsity, by the sensitivity of each layer.

    Scanned on validation samples (`compress.sparsity.sensitivity`). Where the suggestion is to leave a layer whole it
    still gets ``LEAST_SUGGESTED``, so that every rate can be reached.
    """
    validation = _needed(context).validation
    found = scan(
        model,
        validation,
        keep=config.keep,
        samples=config.samples,
        device=context.device,
        progress=context.progress,
        metric=context.metric,
    )
    parameters = sparsifiable(model.module, config.keep)
    suggestion = suggest(
        model,
        validation,
        found,
        config.budget,
        device=context.device,
        progress=context.progress,
        metric=context.metric,
    )
    shares = resolve_layers(parameters, suggestion.layers)
    return {name: max(LEAST_SUGGESTED, shares.get(name, 0.0)) for name in parameters}


def measure_curves(
    model: Model,
    config: CurveConfig,
    context: Context,
    *,
    finished: Iterable[Run] = (),
    after_run: Callable[[Run], None] = lambda run: None,
) -> Curves:
    """Score ``model`` with every method at every rate. The given module is untouched: each point is a masked copy.

    A method alone masks the trained weights and nothing more. NAME+finetune distils from the dense model while sparsity
    rises on the cubic schedule, then recovers. Rate 0 is the dense model as it is for every method, never fine-tuned.

    Args:
        finished: Runs of an earlier call with the same model, data and config; those are not run again.
        after_run: Called with every new run, as soon as it is done.

    Raises:
        SparsityError: there is no data, nothing to sparsify, or a rate that custom cannot reach.
    """
    if "custom" in {method.removesuffix(FINE_TUNED) for method in config.methods} and not config.layers:
        config = dataclasses.replace(config, layers=suggest_layers(model, config, context))
    lab = _Lab(model, config, context)
    wanted = list(config.wanted(context.seed))
    known = {(run.method, run.rate, run.seed): run for run in finished}
    runs = []
    for number, (method, rate, seed) in enumerate(wanted):
        tell = partial(context.progress, LABEL, number, len(wanted))  # one label: one bar for all points
        tell(f"{method} at {rate:g}")
        run = known.get((method, rate, seed))
        if run is None:
            run = lab.run(method, rate, seed, tell)
            logger.info("%s at %g, seed %d: %.4f", method, rate, seed, run.value)
            after_run(run)
        runs.append(run)
    context.progress(LABEL, len(wanted), len(wanted))
    return summarise_runs(
        runs,
        dense=lab.dense,
        sizes=lab.sizes,
        samples=len(lab.split),
        split=config.split,
        measured_in=lab.measured_in,
        layers=config.layers,
    )


class _Lab:
    """The dense model, and what the runs share."""

    def __init__(self, model: Model, config: CurveConfig, context: Context) -> None:
        self._model, self._config, self._context = model, config, context
        self._data = _needed(context)
        self.split: Split = {"test": self._data.test, "validation": self._data.validation}[config.split]
        parameters = sparsifiable(model.module, config.keep)
        if not parameters:
            raise SparsityError("the model has no weight with two or more axes: there is nothing to sparsify.")
        self.sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self._layers = resolve_layers(parameters, config.layers)
        for method, rate, _ in config.wanted(context.seed):
            self._target(method, rate)  # a rate that cannot be reached is told before the first point
        self._reference = outputs_of(model, self.split, device=context.device)
        whole = score(self._reference, self._reference, context.metric)
        self.dense, self.measured_in = whole.figure, whole.measured_in

    def run(self, method: str, rate: float, seed: int, tell: Tell) -> Run:
        module = copy.deepcopy(self._model.module)
        if rate > 0:
            self._remove(module, method, rate, seed, tell)
        parameters = sparsifiable(module, self._config.keep)
        zeros = {name: int((parameter == 0).sum()) for name, parameter in parameters.items()}
        least = round(rate * sum(self.sizes.values())) - len(zeros)  # each layer rounds to whole weights
        if sum(zeros.values()) < least:
            raise SparsityError(f"{method} at {rate}: {least:,} weights should be zero, {sum(zeros.values()):,} are.")
        masked = dataclasses.replace(self._model, module=module)
        return Run(method, rate, seed, self.dense if rate == 0 else self._figure(masked), zeros)

    def _figure(self, model: Model) -> float:
        return figure_of(model, self.split, self._reference, self._context.device, self._context.metric)

    def _remove(self, module: nn.Module, method: str, rate: float, seed: int, tell: Tell) -> None:
        ranking = METHODS[method.removesuffix(FINE_TUNED)]
        tuned = method.endswith(FINE_TUNED)
        steps = plan_steps(self._data.train, self._config.finetune, self._config.epochs)
        masking = Masking(
            sparsifiable(module, self._config.keep),
            self._target(method, rate),
            ramp=max(1, round(self._config.ramp * steps)) if tuned else 0,
            score=ranking.score,
            scope=ranking.scope,
            gradients=self._gradients if ranking.score == "taylor" else None,
            seed=seed,
        )
        if tuned:
            self._finetune(module, masking, steps, seed, partial(_tell_step, tell, f"{method} at {rate:g}"))

    def _target(self, method: str, rate: float) -> float | dict[str, float]:
        if method.removesuffix(FINE_TUNED) != "custom":
            return rate
        return at_total(self._layers, self.sizes, rate)

    def _finetune(self, module: nn.Module, masking: Masking, steps: int, seed: int, progress: Progress) -> None:
        finetune(
            thaw(module),
            self._teacher,
            self._data.train,
            self._config.finetune,
            steps=steps,
            seed=seed,
            device=self._context.device,
            after_step=masking,
            progress=progress,
        )

    @cached_property
    def _teacher(self) -> Teacher:
        return teacher_of(self._model.module, self._data.train, device=self._context.device)

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
        return mean_gradients(self._model.module, self._data.train, device=self._context.device)


def _tell_step(tell: Tell, what: str, label: str, done: int, total: int, note: str = "") -> None:
    tell(f"{what}, step {done} of {total}, {note}")


def _needed(context: Context) -> Data:
    if context.data is None:
        raise SparsityError("compression curves need data to score on: give --data.")
    return context.data
