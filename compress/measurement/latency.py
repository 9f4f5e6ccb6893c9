"""`measure`: the latency of every variant, each in a process of its own, in turns.

Two things make latencies lie. Machines drift: so variants take turns in many short rounds, in a fresh random order
each, and the drift hits all alike. And where a process's memory lands is fixed when it starts: the same file, started
again, is some percent faster or slower (measured: 3 % of a CNN of 0.26 ms). So every variant is started several times,
one launch after the other, and the intervals come from resampling launches as well as rounds (Kalibera and Jones 2013,
"Rigorous benchmarking in reasonable time").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compress.errors import MeasurementError
from compress.measurement.energy import Energy, Meter, meter
from compress.measurement.process import PATIENCE_S, Process
from compress.measurement.sessions import provider_of
from compress.measurement.timing import Timing, summary
from compress.measurement.turns import MS, block_length
from compress.values import Context, Progress, Variant, silent

if TYPE_CHECKING:
    from compress.data.splits import Data
    from compress.measurement.stage import BenchmarkConfig

logger = logging.getLogger(__name__)


class Bench(Protocol):
    """Where one model is opened and timed. The requests are the methods of `compress.measurement.serving.Server`."""

    def ask(self, request: str, *arguments: Any, limit_s: float = PATIENCE_S) -> Any: ...

    def close(self) -> None: ...


Launch = Callable[[], Bench]


@dataclass(frozen=True)
class Job:
    """A file and what it is called with."""

    path: Path
    feeds: Mapping[str, NDArray[Any]]
    launch: Launch | None = None  # starts a process of another runtime than ONNX Runtime; None: as all the others


@dataclass(frozen=True)
class Plan:
    """How files are timed together."""

    provider: str = "cpu"  # a key of PROVIDERS
    threads: int = 1  # of one operator
    batch: int = 1  # samples that a job's feeds hold
    seconds: float = 3.0  # of timing each job, over all launches
    min_samples: int = 50  # of each job, however slow it is
    rounds: int = 30  # at least, over all launches
    launches: int = 10  # processes of each job, one after the other
    energy: Energy = "no"  # of `compress.measurement.energy.meter`
    seed: int = 0  # of the order

    @property
    def rounds_each(self) -> int:
        """Rounds of one launch."""
        return ceil(self.rounds / self.launches)


def measure(
    variants: Sequence[Variant], data: Data, config: BenchmarkConfig, context: Context, launch: Launch = Process
) -> list[tuple[Timing, ...]]:
    """Time every variant; what cannot run gets a timing that says why and has no numbers.

    Args:
        variants: At least one.
        data: Its calibration split has the samples that the models are called with.
        config: What is measured, and how thoroughly.
        context: For the seed and the progress.
        launch: Starts a process to time in; in tests a stand-in within their own.

    Returns:
        For each variant its timings: one for each provider, number of threads and batch size, in that nesting.
    """
    counts = config.thread_counts
    jobs = {batch: _jobs(variants, data, batch, context.seed) for batch in config.batches}
    columns = []
    for provider in config.providers:
        for count in counts:
            for batch in config.batches:
                told = f"{count} thread{'s' if count > 1 else ''}, " if len(counts) > 1 else ""
                label = f"timing {provider}, {told}batch {batch}"
                plan = Plan(
                    provider=provider,
                    threads=count,
                    batch=batch,
                    seconds=config.seconds,
                    min_samples=config.min_samples,
                    rounds=config.rounds,
                    launches=config.launches,
                    energy=config.energy,
                    seed=context.seed,
                )
                columns.append(time_together(jobs[batch], plan, launch, context.progress, label))
    return list(zip(*columns, strict=True))


def _jobs(variants: Sequence[Variant], data: Data, batch: int, seed: int) -> list[Job]:
    """One a variant; the samples are read once for all that take the same inputs."""
    from compress.data.examples import examples
    from compress.measurement.accuracy import feeds

    given = {
        specs: feeds(specs, examples(specs, data, batch, seed))
        for specs in dict.fromkeys(variant.onnx.inputs for variant in variants)
    }
    return [Job(variant.onnx.path.resolve(), given[variant.onnx.inputs]) for variant in variants]


def time_together(
    jobs: Sequence[Job], plan: Plan, launch: Launch = Process, progress: Progress = silent, label: str = "timing"
) -> list[Timing]:
    """Time several files in turns: in each launch a process each, and in each of its rounds a block of calls each.

    Returns:
        One timing a job, in their order; all share launches and rounds, so that `speedup` can pair them.
    """
    lanes = [_Lane(job, plan) for job in jobs]
    generator = np.random.default_rng(plan.seed)
    power = meter(plan.energy)
    for number in range(plan.launches):
        with ExitStack() as stack:
            for lane in lanes:  # all are started at once, to import side by side
                stack.callback(lane.close)
                lane.attempt(partial(lane.start, launch))
            for lane in lanes:  # what the first does would be timed beside the imports of the others
                lane.attempt(lane.wait)
            for lane in lanes:
                lane.attempt(lane.open)
            core: list[int] = []  # where all stay in this launch, once the first has chosen
            for lane in lanes if _fits_one_core(plan) else ():
                lane.attempt(partial(lane.pin, core))
            for lane in lanes:
                lane.attempt(lane.warm)
            for done in range(plan.rounds_each):
                for index in generator.permutation(len(lanes)):
                    lanes[index].attempt(lanes[index].round)
                progress(label, number * plan.rounds_each + done + 1, plan.launches * plan.rounds_each)
            for lane in lanes:
                lane.attempt(lane.look)
            if power is not None and number == plan.launches - 1:
                for lane in lanes:
                    lane.attempt(partial(lane.take_energy, power))
    return [lane.timing() for lane in lanes]


def _fits_one_core(plan: Plan) -> bool:
    """One thread, and no provider with threads or a device of its own."""
    row = provider_of(plan.provider)
    return plan.threads == 1 and not row.own_threads and row.device is None


class _Lane:
    """One job on its way through the launches."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self._job, self._plan = job, plan
        self._bench: Bench | None = None  # of this launch
        self._status: str | None = None  # why there will be no numbers
        self._block = 0  # calls a round: the same in every launch
        self._median_ns = 0.0
        self._settled: list[bool] = []  # one a launch
        self._load_ms: list[float] = []  # one a launch
        self._first_ms: list[float] = []
        self._peaks: list[int] = []
        self._rounds: list[NDArray[np.float64]] = []  # nanoseconds, launch after launch
        self._found: dict[str, Any] = {}

    def attempt(self, step: Callable[[], None]) -> None:
        """Do a step, unless one failed before; one that fails is what will be told of this job."""
        if self._status is not None:
            return
        try:
            step()
        except MeasurementError as error:
            self._status = str(error)
            self.close()

    def start(self, launch: Launch) -> None:
        self._bench = (self._job.launch or launch)()

    def wait(self) -> None:
        """Until the process is there."""
        self._ask("start")

    def open(self) -> None:
        """Make the session and call it for the first time."""
        plan = self._plan
        load_ms, first_ms = self._ask("open", str(self._job.path), plan.provider, plan.threads, dict(self._job.feeds))
        self._load_ms.append(load_ms)
        self._first_ms.append(first_ms)

    def pin(self, core: list[int]) -> None:
        """Stay on the core of the others, or, the first, where the system has this job.

        Cores are not alike, least of all while others use some: two processes on a core each are compared across that.
        Measured on a CNN, it halves by how much the ratio of a file to itself differs from launch to launch.
        """
        chosen = self._ask("pin", core[0] if core else None)
        if chosen is not None and not core:
            core.append(chosen)

    def warm(self) -> None:
        """Warm up, and learn how many calls make a block."""
        plan = self._plan
        self._median_ns, settled = self._ask("warm", plan.seconds / plan.launches)
        self._settled.append(settled)
        if not self._block:
            rounds = plan.rounds_each * plan.launches
            self._block = block_length(self._median_ns, plan.seconds, plan.min_samples, rounds)

    def round(self) -> None:
        """One block of calls."""
        self._rounds.append(self._ask("block", self._block, expected_s=self._block * self._median_ns / 1e9))

    def look(self) -> None:
        """The memory that was taken; then, once, where the nodes run, which takes more.

        A provider that leaves nodes to another is refused here: after the first launch, and not after all.
        """
        peak = self._ask("peak")
        if peak is not None:
            self._peaks.append(peak)
        if "placement" not in self._found:
            self._found["placement"] = self._ask("place")

    def take_energy(self, power: Meter) -> None:
        """Of one sample; nothing where the meter failed after all."""
        try:
            power.start()
            calls: int = self._ask("run_for", self._plan.seconds, expected_s=self._plan.seconds)
            self._found["energy_mj"] = power.stop() / (calls * self._plan.batch)
        except MeasurementError as error:
            logger.warning("energy of %s: %s", self._job.path.name, error)

    def timing(self) -> Timing:
        """What was found."""
        plan, row = self._plan, provider_of(self._plan.provider)
        if self._status is not None:
            return Timing(row.label, plan.batch, plan.threads, status=self._status, precision=row.precision)
        return summary(
            np.stack(self._rounds).reshape(plan.launches, plan.rounds_each, -1) / MS,
            provider=row.label,
            batch=plan.batch,
            threads=plan.threads,
            precision=row.precision,
            load_ms=float(np.median(self._load_ms)),
            first_call_ms=float(np.median(self._first_ms)),
            peak_bytes=max(self._peaks, default=None),
            settled=2 * sum(self._settled) > plan.launches,
            **self._found,
        )

    def close(self) -> None:
        """End this launch's process."""
        if self._bench is not None:
            self._bench.close()
            self._bench = None

    def _ask(self, request: str, *arguments: Any, expected_s: float = 0.0) -> Any:
        assert self._bench is not None
        return self._bench.ask(request, *arguments, limit_s=PATIENCE_S + 10 * expected_s)
