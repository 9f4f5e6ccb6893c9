"""`compare`: two finished runs side by side, with their two files timed together, here and now."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from filecmp import cmp
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data import synthetic
from compress.errors import CompressError, MeasurementError
from compress.integrity import check_files
from compress.measurement import SHIPPED_NAME, BenchmarkConfig, members
from compress.measurement.answers import Kept, load_answers
from compress.measurement.latency import Launch, measure
from compress.measurement.process import Process
from compress.measurement.sessions import PROVIDERS
from compress.models import load
from compress.reporting.run_comparison import Retimed, common_places, compare_runs, why_not_paired
from compress.values import Context, OnnxModel, Progress, Variant, silent
from compress.workspace import read_run

logger = logging.getLogger(__name__)

ANSWERS = Path("stages", "05-benchmark", "answers.npz")
MACHINE = ("cpu", "isa", "machine", "cores", "os")  # of the environment: what latency depends on besides versions


@dataclass(frozen=True)
class CompareConfig:
    """How two runs are compared."""

    timing: bool = True  # time both files again, together; else their recorded latencies are only shown
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)  # of timing; places are those of the runs
    seed: int = 0  # of the order in which the files take turns


def compare(
    before: Path,
    after: Path,
    config: CompareConfig,
    progress: Progress = silent,
    launch: Launch = Process,
) -> dict[str, Any]:
    """What changed between two runs, as plain values: see `compress.reporting.run_comparison.compare_runs`.

    Args:
        before: The directory of a finished run.
        after: Likewise.
        config: How latencies are compared.
        progress: Told about the timing.
        launch: Starts the processes that time; in tests a stand-in.

    Raises:
        WorkspaceError, ReportError: one of them is no finished run, or cannot be read.
        MeasurementError: one of the two files is not the one that its run measured.
    """
    reports = (read_run(before), read_run(after))
    for root in (before, after):
        if problems := check_files(root).problems:
            raise MeasurementError(f"{root} is not as its run left it: {'; '.join(problems)}. Run the pipeline again.")
    if config.timing:
        retimed = _time_together((before, after), reports, config, progress, launch)
    else:
        retimed = Retimed(reason=f"--no-timing was given, and {_recorded(*reports)}")
    return compare_runs(*reports, _answers((before, after), reports), retimed, (str(before), str(after)))


def _answers(roots: tuple[Path, Path], reports: tuple[Mapping[str, Any], ...]) -> tuple[Kept, Kept] | str:
    """Both runs' answers to the same test samples, or why there are none."""
    reason = why_not_paired(*reports)
    if reason is not None:
        return reason
    missing = [str(root) for root in roots if not (root / ANSWERS).is_file()]
    if missing:
        return f"{' and '.join(missing)} kept no {ANSWERS.name}"
    first, second = (load_answers(root / ANSWERS) for root in roots)
    if not _same(first.labels, second.labels):
        return "the labels of the two runs' test samples differ"
    return first, second


def _same(first: NDArray[Any] | None, second: NDArray[Any] | None) -> bool:
    return first is second if first is None or second is None else np.array_equal(first, second)


def _time_together(
    roots: tuple[Path, Path],
    reports: tuple[Mapping[str, Any], ...],
    config: CompareConfig,
    progress: Progress,
    launch: Launch,
) -> Retimed:
    """Time both files where both runs timed them, or say why not: a comparison goes on without latencies."""
    files = [root / SHIPPED_NAME for root in roots]
    places = common_places(*reports)
    try:
        if _identical(*files):
            return Retimed(reason=f"both runs ship the same {SHIPPED_NAME}, byte for byte")
        models = [_opened(file) for file in files]
    except CompressError as error:
        return Retimed(reason=str(error).rstrip("."))
    shapes = [[(spec.shape, spec.dtype) for spec in model.inputs] for model in models]
    if shapes[0] != shapes[1] or not places:
        return Retimed(reason=f"their inputs differ, {shapes[0]} and {shapes[1]}" if places else "neither was timed")
    found: list[tuple[Any, Any]] = []
    variants = [Variant(str(root), "compare", model) for root, model in zip(roots, models, strict=True)]
    context = Context(data=None, directory=Path(), seed=config.seed, progress=progress)
    for place in places:
        one = _at(config.benchmark, place)
        theirs, ours = measure(variants, synthetic(models[0].inputs, seed=config.seed), one, context, launch)
        found.append((theirs[0], ours[0]))
    return Retimed(tuple(found))


def _identical(first: Path, second: Path) -> bool:
    """Whether two ONNX files are the same, byte for byte, with the weights that lie beside them."""
    theirs, ours = members(first), members(second)
    return theirs.keys() == ours.keys() and all(cmp(theirs[name], ours[name], shallow=False) for name in theirs)


def _opened(path: Path) -> OnnxModel:
    model = load(path).onnx
    assert model is not None
    if any(0 in spec.shape for spec in model.inputs):
        names = ", ".join(spec.name for spec in model.inputs if 0 in spec.shape)
        raise MeasurementError(f"{path} does not tell the sizes of its input {names}")
    return model


def _at(config: BenchmarkConfig, place: Mapping[str, Any]) -> BenchmarkConfig:
    """The same thoroughness, at one provider, number of threads and batch size."""
    provider = next(key for key, row in PROVIDERS.items() if row.label == place["provider"])
    return replace(config, providers=(provider,), threads=(place["threads"],), batches=(place["batch"],))


def _recorded(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What the recorded latencies are worth."""
    machines = [report["environment"] for report in (before, after)]
    differing = [key for key in MACHINE if machines[0].get(key) != machines[1].get(key)]
    if differing:
        told = "; ".join(f"{key}: {machines[0].get(key)} and {machines[1].get(key)}" for key in differing)
        return f"what was recorded comes from different machines ({told})"
    return "what was recorded comes from two moments of this machine, whose drift is part of any difference"
