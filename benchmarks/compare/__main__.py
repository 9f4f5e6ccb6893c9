"""Compress trained models with this project and with what a user would pick instead, and measure all files.

    python -m benchmarks.compare --workload cnn                       # or several, or all
    python -m benchmarks.compare --workload cnn --seed 0 --peers torch-pruning-ort --entries compress-size
    python -m benchmarks.compare --workload cnn --again compress-size # made once more; the others are kept
    python -m benchmarks.compare --workload cnn --only-measure        # what is there

Every entry is given the same dense model, data, optimizer steps and loss; peers never see the test split. Each runs in
a process and, for peers, an environment of its own; what it made is kept in --work, and made again when what decides it
changes: the model, the data, the budget, a peer's script or requirements, a default of this project's recipe. A change
of this project's code alone does not show there: give --again. Then one run times all files of a seed in turns, and
scores them; once more, where our entries follow that are allowed what the best peer lost.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.compare import matched, page, results
from benchmarks.compare.entries import BY_NAME, DENSE, ENTRIES, Entry, entries_for
from benchmarks.compare.inputs import Inputs, prepare
from benchmarks.compare.made import Made, made_before
from benchmarks.compare.measured import measure
from benchmarks.compare.row import Row
from benchmarks.compare.runs import TIMEOUT_S, Place, chain, make
from benchmarks.peers.environments import FOLDER as ENVIRONMENTS
from benchmarks.workloads import WORKLOADS
from compress.measurement.environment import environment
from compress.measurement.latency import Plan

OWN = tuple(entry.name for entry in ENTRIES if entry.objective is not None)
PEERS = tuple(entry.name for entry in ENTRIES if entry.objective is None)
ALL = "all"
ORDER = {entry.name: place for place, entry in enumerate(ENTRIES)}
Measured = Callable[[], Sequence[Row]]


def asked_for(workload: str, names: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of these names that are tried on a workload, and those that they go on from, in the table's order."""
    wanted = {one.name for name in names for one in chain(BY_NAME[name])}
    return tuple(entry for entry in entries_for(WORKLOADS[workload].architecture) if entry.name in wanted)


def make_all(entries: Sequence[Entry], place: Place, again: Sequence[str], only_kept: bool) -> list[Made]:
    """What every entry made; with ``only_kept`` those alone that have a record, whatever it was made of."""
    made: dict[str, Made] = {}
    for entry in entries:
        if only_kept:
            before = made_before(place.folder(entry.name))
            made |= {} if before is None else {entry.name: before}
        else:
            source = None if entry.needs in (None, DENSE) else made[entry.needs]
            made[entry.name] = make(entry, place, source, again=entry.name in again)
    return list(made.values())


def make_matched(entries: Sequence[Entry], place: Place, again: Sequence[str], measured: Measured) -> list[Made]:
    """What those of ours made that may lose what the best peer lost.

    Args:
        measured: The rows of all others: asked for only where it is not known yet who that is.
    """
    made: list[Made] = []
    for entry in entries:
        folder, inputs = place.folder(entry.name), place.inputs.identity
        known = None if entry.name in again else matched.decided(entry, folder, inputs)
        known = known or matched.decide(entry, folder, inputs, measured())
        if known is None:
            made.append(Made(entry.name, entry.settings, None, identity="", status=matched.NO_PEER))
        else:
            made.append(make(known, place, again=entry.name in again))
    return made


def compare(workload: str, options: argparse.Namespace) -> None:
    """One workload: its entries at every seed that was asked for, and the results of all seeds that there are."""
    entries = asked_for(workload, [*options.entries, *options.peers])
    inputs: Inputs | None = None
    for seed in WORKLOADS[workload].seeds if options.seed is None else options.seed:
        inputs = prepare(workload, seed, options.checkpoints, options.work, options.data_root)
        place = Place(inputs, options.environments, options.timeout)
        timed = partial(measure, workload, seed, inputs.work, seconds=options.seconds, launches=options.launches)
        if options.only_measure:
            made = make_all(entries, place, options.again, only_kept=True)
        else:
            made = make_all([one for one in entries if one.matches is None], place, options.again, only_kept=False)
            others = partial(timed, list(made))
            made += make_matched([one for one in entries if one.matches], place, options.again, others)
        timed(sorted(made, key=lambda one: ORDER[one.name]))
    assert inputs is not None  # there is a seed
    write(workload, inputs, options)


def write(workload: str, inputs: Inputs, options: argparse.Namespace) -> None:
    """Results and page from what was measured, at all seeds."""
    folders = sorted(options.work.glob(f"{workload}-seed*"))
    rows = [row for folder in folders for row in results.kept(folder)]
    budget = {name: value for name, value in inputs.budget().items() if name not in ("seed", "baseline")}
    command = ["python", "-m", "benchmarks.compare", "--workload", workload, "--seconds", f"{options.seconds:g}"]
    command += ["--launches", str(options.launches)]
    expected = [entry.name for entry in entries_for(WORKLOADS[workload].architecture)]
    print(results.write(rows, workload, options.out, environment(threads=1), budget, shlex.join(command), expected))
    page.page(options.out)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    there = "workloads whose dense model is there"
    parser.add_argument("--workload", nargs="+", choices=[*WORKLOADS, ALL], default=[ALL], help=f"{ALL}: {there}")
    parser.add_argument("--seed", nargs="+", type=int, help="default: those of the workload")
    parser.add_argument("--entries", nargs="*", choices=[*OWN, ALL], default=[ALL], help="this project's")
    parser.add_argument("--peers", nargs="*", choices=[*PEERS, ALL], default=[ALL])
    parser.add_argument("--again", nargs="+", choices=list(BY_NAME), default=[], help="entries to make once more")
    parser.add_argument("--only-measure", action="store_true", help="measure what is there, make nothing")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="of benchmarks.train, at seed 0")
    parser.add_argument("--data-root", type=Path, help="where the data lies, for workloads that ask for it")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="files that are made, and kept")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="the peers', made where missing")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds that an entry may take")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, for each file")
    parser.add_argument("--launches", type=int, default=Plan.launches, help="processes that each file is timed in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(given)
    options.entries = OWN if ALL in options.entries else options.entries
    options.peers = PEERS if ALL in options.peers else options.peers
    if ALL in options.workload:
        options.workload = [name for name in WORKLOADS if (options.checkpoints / name / "model.pt").exists()]
        if not options.workload:
            parser.error(f"no dense model in {options.checkpoints}: run benchmarks.train, or name a --workload")
    return options


def main() -> None:
    options = arguments()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended too
    for workload in options.workload:
        compare(workload, options)


if __name__ == "__main__":
    main()
