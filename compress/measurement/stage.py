"""`benchmark`: every variant measured in the same way: counts, answers, bytes, latency, and its limit here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from compress.errors import MeasurementError, RecipeError
from compress.measurement.energy import Energy, note
from compress.measurement.environment import available_threads, load_average
from compress.measurement.sessions import PROVIDERS, Provider
from compress.values import Context, StageRecord, Variant

if TYPE_CHECKING:
    from compress.data.splits import Data
    from compress.measurement.answers import Answers
    from compress.measurement.latency import Launch
    from compress.measurement.limit import Limit, Machine
    from compress.measurement.size import Sizes
    from compress.measurement.timing import Timing
    from compress.models.counts import Counts

# torch, and with it the data and the models, is imported inside functions: `compress doctor` passes by this module, and
# must run where torch cannot be imported.

logger = logging.getLogger(__name__)

_WEIGHED_AT_ONCE = 4  # files at most: each is in memory meanwhile


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and how thoroughly."""

    providers: tuple[Provider, ...] = ("cpu",)  # execution providers: keys of `compress.measurement.PROVIDERS`
    batches: tuple[int, ...] = (1,)  # samples a call, each at least 1
    threads: tuple[int, ...] = (0,)  # of one operator; 0: as many as this process may use
    seconds: float = 3.0  # of timing, for each variant, provider, number of threads and batch size; above 0
    min_samples: int = 50  # timed calls at least, however slow a variant is; at least 1
    rounds: int = 30  # in which the variants take turns; at least 2
    launches: int = 10  # processes a variant, one after the other, that share the rounds; at least 1
    energy: Energy = "no"  # per sample; auto: what can be read here, or a note that nothing can
    metric: str | None = None  # module:function or ./file.py:function, in place of accuracy; higher is better
    accuracy_batch: int = 256  # samples at a time while scoring, at most; at least 1
    synthetic_samples: int = 512  # made-up inputs where there is no data; at least 8
    sensitivity_seconds: float = 30.0  # of changing one layer of the original at a time; 0: not done

    def __post_init__(self) -> None:
        problems = [f"provider {p!r}: allowed are {', '.join(PROVIDERS)}" for p in self.providers if p not in PROVIDERS]
        if not self.providers or not self.batches or not self.threads:
            problems.append("at least one provider, one batch size and one number of threads is needed")
        if any(batch < 1 for batch in self.batches):
            problems.append(f"batches={self.batches} must each be at least 1")
        if any(threads < 0 for threads in self.threads):
            problems.append(f"threads={self.threads} must each be at least 1, or 0 for all that are available")
        for name in ("providers", "batches", "threads"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                problems.append(f"{name}={getattr(self, name)} names one twice")
        if self.energy not in get_args(Energy):
            problems.append(f"energy={self.energy!r}: allowed are {', '.join(get_args(Energy))}")
        if not 0 < self.seconds < math.inf:
            problems.append(f"seconds={self.seconds} must be above 0, and finite")
        if not math.isfinite(self.sensitivity_seconds):
            problems.append(f"sensitivity_seconds={self.sensitivity_seconds} must be finite")
        least = {"min_samples": 1, "rounds": 2, "launches": 1, "accuracy_batch": 1, "synthetic_samples": 8}
        least["sensitivity_seconds"] = 0
        problems += [
            f"{n}={getattr(self, n)} must be at least {low}" for n, low in least.items() if getattr(self, n) < low
        ]
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """``threads`` as they are here, each at least 1 and each once."""
        return tuple(dict.fromkeys(threads or available_threads() for threads in self.threads))

    @property
    def first_threads(self) -> int:
        """The number of threads where one is needed: the first."""
        return self.thread_counts[0]


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured of one variant."""

    variant: Variant
    counts: Counts
    sizes: Sizes
    validation: Answers | None  # steers the choice; None: no samples
    test: Answers  # for the report alone
    latency: tuple[Timing, ...]  # one for each provider, number of threads and batch size, in the order asked for
    limit: Limit | None = None  # of the first latency on the CPU; None: there is none, or the file is beyond analysis

    @property
    def raw_bytes(self) -> int:
        """On disk, external data counted."""
        return self.sizes.raw_bytes

    @property
    def zip_bytes(self) -> int:
        """Deflate 9: the download."""
        return self.sizes.zip_bytes

    @property
    def sparsity(self) -> float:
        """Zeros / parameters, 0..1."""
        return 1 - self.counts.nonzero / self.counts.parameters if self.counts.parameters else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the raw latency samples too; the variant by its name."""
        return {
            "variant": self.variant.name,
            "counts": asdict(self.counts),
            "sizes": self.sizes.to_dict(),
            "validation": None if self.validation is None else self.validation.to_dict(),
            "test": self.test.to_dict(),
            "latency": [timing.to_dict(samples=True) for timing in self.latency],
            "limit": None if self.limit is None else self.limit.to_dict(),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], variant: Variant) -> Measurement:
        """What `to_dict` made, with the variant that it was made from."""
        from compress.measurement.answers import Answers
        from compress.measurement.limit import Limit
        from compress.measurement.size import Sizes
        from compress.measurement.timing import Timing
        from compress.models.counts import Counts

        validation, limit = stored["validation"], stored["limit"]
        return cls(
            variant=variant,
            counts=Counts(**stored["counts"]),
            sizes=Sizes.from_dict(stored["sizes"]),
            validation=None if validation is None else Answers.from_dict(validation),
            test=Answers.from_dict(stored["test"]),
            latency=tuple(Timing.from_dict(timing) for timing in stored["latency"]),
            limit=None if limit is None else Limit.from_dict(limit),
        )


def benchmark(
    variants: tuple[Variant, ...],
    config: BenchmarkConfig,
    context: Context,
    *,
    keep: Path | None = None,
    launch: Launch | None = None,
) -> tuple[tuple[Measurement, ...], StageRecord]:
    """Measure every variant; the first is the baseline that answers and latencies are held against.

    Without data the inputs are made up: there is fidelity on them, and no accuracy. A provider that is not there, or
    cannot run a variant, gets a timing that says so and has no numbers.

    Args:
        variants: At least one.
        config: What is measured, and how thoroughly.
        context: For the data, the metric, the seed and the progress.
        keep: Where every variant's answers to the test split go: see `compress.measurement.answers.load_answers`.
        launch: Starts the processes that are timed; tests give a stand-in.

    Raises:
        MeasurementError: there is nothing to measure, or a variant does not run or gives outputs that are not finite.
    """
    from compress.measurement import latency
    from compress.measurement.answers import score_all

    started, load = time.perf_counter(), load_average()
    if not variants:
        raise MeasurementError("nothing to benchmark: give at least one ONNX file.")
    data = context.data or _made_up(variants[0], config, context.seed)
    validation = score_all(variants, data.validation, config, context) if len(data.validation) else None
    test = score_all(variants, data.test, config, context, keep)
    timings = latency.measure(variants, data, config, context, **({} if launch is None else {"launch": launch}))
    machine, weights = _machine(config), _weighed(variants, context)
    measurements = tuple(
        _measurement(
            variant,
            weights[number],
            None if validation is None else validation[number],
            test[number],
            timings[number],
            machine,
        )
        for number, variant in enumerate(variants)
    )
    figures = {
        "validation_samples": len(data.validation),
        "test_samples": len(data.test),
        "threads": list(config.thread_counts),
        "load_average": load,  # as this stage started
        "machine": None if machine is None else machine.to_dict(),
    }
    notes = _notes(measurements, config, context)
    return measurements, StageRecord("benchmark", asdict(config), time.perf_counter() - started, figures, notes)


def _made_up(variant: Variant, config: BenchmarkConfig, seed: int) -> Data:
    from compress.data import synthetic

    return synthetic(variant.onnx.inputs, count=config.synthetic_samples, seed=seed)


def _weighed(variants: Sequence[Variant], context: Context) -> list[Sizes]:
    """Every variant's bytes. Deflating holds no lock of Python's: several cores weigh, once nothing is timed."""
    from compress.measurement.size import sizes

    found = []
    pool = ThreadPoolExecutor(min(available_threads(), _WEIGHED_AT_ONCE))
    try:
        pending = pool.map(lambda variant: sizes(variant.onnx.path, variants[0].onnx.path), variants)
        for variant, weight in zip(variants, pending, strict=True):
            found.append(weight)
            context.progress("weighing", len(found), len(variants), variant.name)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun
    return found


def _machine(config: BenchmarkConfig) -> Machine | None:
    """What this processor can do; None where it is not what is measured."""
    from compress.measurement.limit import machine

    return machine(config.first_threads, config.seconds) if "cpu" in config.providers else None


def _measurement(
    variant: Variant,
    weight: Sizes,
    validation: Answers | None,
    test: Answers,
    timings: tuple[Timing, ...],
    machine: Machine | None,
) -> Measurement:
    from compress.measurement.limit import limit
    from compress.models.counts import count

    path, inputs = variant.onnx.path, variant.onnx.inputs
    name = PROVIDERS["cpu"].label
    threads = None if machine is None else machine.threads
    timed = next((t for t in timings if (t.provider, t.threads) == (name, threads) and t.p50_ms is not None), None)
    return Measurement(
        variant=variant,
        counts=count(path, inputs),
        sizes=weight,
        validation=validation,
        test=test,
        latency=timings,
        limit=None if machine is None or timed is None else limit(path, inputs, timed.batch, machine, timed.p50_ms),
    )


def _notes(measurements: Sequence[Measurement], config: BenchmarkConfig, context: Context) -> tuple[str, ...]:
    notes = [] if context.data is not None else ["no data: fidelity was measured on made-up inputs"]
    if (energy := note(config.energy)) is not None:
        notes.append(energy)
    for measurement in measurements:
        for timing in measurement.latency:
            where = f"{measurement.variant.name} on {timing.provider}, batch {timing.batch}, threads {timing.threads}"
            if not timing.settled:
                notes.append(f"{where}: latency still moved after warm-up; is the machine busy?")
                logger.warning(notes[-1])
    return tuple(notes)
