"""`benchmark`: every variant measured in the same way: counts, bytes, accuracy, latency."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from compress.errors import MeasurementError, RecipeError
from compress.measurement.accuracy import Outputs, Score, feeds, outputs_of, score
from compress.measurement.environment import available_threads
from compress.measurement.sessions import PROVIDERS, Provider, open_session
from compress.measurement.size import raw_bytes, zip_bytes
from compress.measurement.timing import Timing, interleave
from compress.values import Context, StageRecord, Variant

if TYPE_CHECKING:
    from compress.data.splits import Data, Split
    from compress.models.counts import Counts

# torch, and with it the data and the models, is imported inside functions: `compress doctor` passes by this module, and
# must run where torch cannot be imported.

logger = logging.getLogger(__name__)

Opener = Callable[..., Any]  # (path, provider, threads) -> something with run(None, feeds)


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and how thoroughly.

    One thread is the default because its latencies are the steadiest, and can be compared between machines with
    different numbers of cores.
    """

    providers: tuple[Provider, ...] = ("cpu",)  # execution providers
    batches: tuple[int, ...] = (1,)  # samples a call, each at least 1
    threads: int = 1  # of one operator; 0: as many as this process may use
    seconds: float = 3.0  # of timing, for each variant, provider and batch size; above 0
    min_samples: int = 50  # timed calls at least, however slow a variant is; at least 1
    rounds: int = 25  # in which the variants take turns; at least 2
    accuracy_batch: int = 256  # samples at a time while scoring, at most; at least 1
    synthetic_samples: int = 512  # made-up inputs where there is no data; at least 8

    def __post_init__(self) -> None:
        problems = [f"provider {p!r}: allowed are {', '.join(PROVIDERS)}" for p in self.providers if p not in PROVIDERS]
        if not self.providers or not self.batches:
            problems.append("at least one provider and one batch size is needed")
        if any(batch < 1 for batch in self.batches):
            problems.append(f"batches={self.batches} must each be at least 1")
        if self.threads < 0:
            problems.append(f"threads={self.threads} must be at least 1, or 0 for all that are available")
        if self.seconds <= 0:
            problems.append(f"seconds={self.seconds} must be above 0")
        least = {"min_samples": 1, "rounds": 2, "accuracy_batch": 1, "synthetic_samples": 8}
        problems += [
            f"{n}={getattr(self, n)} must be at least {low}" for n, low in least.items() if getattr(self, n) < low
        ]
        if problems:
            raise RecipeError("; ".join(problems))


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured of one variant."""

    variant: Variant
    counts: Counts
    raw_bytes: int
    zip_bytes: int
    validation: Score | None  # steers the choice; None: no samples
    test: Score  # for the report alone
    latency: tuple[Timing, ...]  # one for each provider and batch size, in the order asked for

    @property
    def sparsity(self) -> float:
        """Zeros / parameters."""
        return 1 - self.counts.nonzero / self.counts.parameters if self.counts.parameters else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, raw latency samples too; the variant by its name."""
        return {
            "variant": self.variant.name,
            "counts": asdict(self.counts),
            "raw_bytes": self.raw_bytes,
            "zip_bytes": self.zip_bytes,
            "validation": None if self.validation is None else self.validation.to_dict(),
            "test": self.test.to_dict(),
            "latency": [timing.to_dict(samples=True) for timing in self.latency],
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any], variant: Variant) -> Measurement:
        """What `to_dict` made, with the variant that it was made from."""
        from compress.models.counts import Counts

        return cls(
            variant=variant,
            counts=Counts(**stored["counts"]),
            raw_bytes=stored["raw_bytes"],
            zip_bytes=stored["zip_bytes"],
            validation=None if stored["validation"] is None else Score.from_dict(stored["validation"]),
            test=Score.from_dict(stored["test"]),
            latency=tuple(Timing.from_dict(timing) for timing in stored["latency"]),
        )


def benchmark(
    variants: tuple[Variant, ...], config: BenchmarkConfig, context: Context, opener: Opener = open_session
) -> tuple[tuple[Measurement, ...], StageRecord]:
    """Measure every variant; the first is the baseline that fidelity is measured against.

    Without data the inputs are made up: there is fidelity on them, and no accuracy. A provider that is not there, or
    cannot run a variant, gets a timing that says so and has no numbers.

    Args:
        variants: At least one.
        opener: Opens the sessions that are timed; `open_session` but in tests.

    Raises:
        MeasurementError: there is nothing to measure, or a variant does not run or gives outputs that are not finite.
    """
    started = time.perf_counter()
    if not variants:
        raise MeasurementError("nothing to benchmark: give at least one ONNX file.")
    data = context.data or _made_up(variants[0], config, context.seed)
    validation = _scores(variants, data.validation, config, context) if len(data.validation) else None
    test = _scores(variants, data.test, config, context)
    latency = _latencies(variants, data, config, context, opener)
    measurements = tuple(
        Measurement(
            variant=variant,
            counts=_counts(variant),
            raw_bytes=raw_bytes(variant.onnx.path),
            zip_bytes=zip_bytes(variant.onnx.path),
            validation=None if validation is None else validation[number],
            test=test[number],
            latency=latency[number],
        )
        for number, variant in enumerate(variants)
    )
    figures = {"validation_samples": len(data.validation), "test_samples": len(data.test), "threads": _threads(config)}
    seconds = time.perf_counter() - started
    return measurements, StageRecord("benchmark", asdict(config), seconds, figures, _notes(measurements, context))


def _made_up(variant: Variant, config: BenchmarkConfig, seed: int) -> Data:
    from compress.data import synthetic

    return synthetic(variant.onnx.inputs, count=config.synthetic_samples, seed=seed)


def _counts(variant: Variant) -> Counts:
    from compress.models.counts import count

    return count(variant.onnx.path, variant.onnx.inputs)


def _threads(config: BenchmarkConfig) -> int:
    return config.threads or available_threads()


def _scores(variants: Sequence[Variant], split: Split, config: BenchmarkConfig, context: Context) -> list[Score]:
    """Score every variant on a split, once."""
    reference: Outputs | None = None
    scores = []
    for number, variant in enumerate(variants):
        try:
            outputs = outputs_of(variant.onnx, split, config.accuracy_batch)
        except MeasurementError as error:
            raise MeasurementError(f"{variant.name}: {error}") from error
        reference = reference or outputs
        scores.append(score(outputs, reference))
        context.progress(f"scoring on {split.name}", number + 1, len(variants), variant.name)
    return scores


def _latencies(
    variants: Sequence[Variant], data: Data, config: BenchmarkConfig, context: Context, opener: Opener
) -> list[tuple[Timing, ...]]:
    """For each variant its timings, one for each provider and batch size."""
    columns = [
        _time_together(variants, provider, batch, data, config, context, opener)
        for provider in config.providers
        for batch in config.batches
    ]
    return list(zip(*columns, strict=True))


def _time_together(
    variants: Sequence[Variant],
    provider: Provider,
    batch: int,
    data: Data,
    config: BenchmarkConfig,
    context: Context,
    opener: Opener,
) -> list[Timing]:
    """Time all variants that run, in turns; the others get the reason as their status."""
    from compress.data.examples import examples

    threads, name = _threads(config), PROVIDERS[provider]
    timings: dict[int, Timing] = {}
    calls: dict[int, Callable[[], object]] = {}
    for number, variant in enumerate(variants):
        samples = examples(variant.onnx.inputs, data, batch, context.seed)
        try:
            session = opener(variant.onnx.path, provider, threads)
            calls[number] = partial(session.run, None, feeds(variant.onnx.inputs, samples))
        except MeasurementError as error:
            timings[number] = Timing(name, batch, threads, status=str(error))
    if calls:
        label = f"timing {provider}, batch {batch}"
        taken = interleave(
            list(calls.values()),
            seconds=config.seconds,
            min_samples=config.min_samples,
            rounds=config.rounds,
            seed=context.seed,
            after_round=lambda done: context.progress(label, done, config.rounds),
        )
        timings |= {n: samples.timing(name, batch, threads) for n, samples in zip(calls, taken, strict=True)}
    return [timings[number] for number in range(len(variants))]


def _notes(measurements: Sequence[Measurement], context: Context) -> tuple[str, ...]:
    notes = [] if context.data is not None else ["no data: fidelity was measured on made-up inputs"]
    for measurement in measurements:
        for timing in measurement.latency:
            where = f"{measurement.variant.name} on {timing.provider}, batch {timing.batch}"
            if not timing.settled:
                notes.append(f"{where}: latency still moved after warm-up; is the machine busy?")
                logger.warning(notes[-1])
    return tuple(notes)
