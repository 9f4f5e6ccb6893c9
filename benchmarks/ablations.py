"""What each stage and each choice of `compress pipeline --objective size` is worth, one at a time.

    python -m benchmarks.ablations --workload lenet-300-100-fashion lenet-5-fashion cnn
    python -m benchmarks.ablations --workload cnn --only no-prune no-distillation      # these, beside the full run

benchmarks/ablation_table.py has the list. A search within a budget turns what is worse into more bytes; so what trains
is run at the amounts of the full run too, where it turns into accuracy. Every run starts from a copy of the full run's
directory and goes on with --resume: stages that nothing changed for are not made again. Runs that are done are kept in
--work, and made again when the checkpoint, a flag or a default changes; when the code has changed, take another --work.
At the end all files of a seed are timed in turns. Dense models that are missing are trained first.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ablated import Row, found_in, timed, write
from benchmarks.ablation_table import ABLATIONS, FULL, NAMES, Ablation, Mode
from benchmarks.compare.entries import MAX_DROP
from benchmarks.compare.inputs import MODEL, checkpoint_of
from benchmarks.compare.own import NOT_MET, versions
from benchmarks.workloads import WORKLOADS, Workload, data_flags, data_of, model_flags
from compress.data import load_data
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.measurement.latency import Plan
from compress.recipe import load_recipe
from compress.workspace import fingerprint, read_run, to_json

STOPPED = 130  # of Ctrl-C
TIMED = {"seconds": 0.2, "launches": 1, "rounds": 2, "sensitivity_seconds": 0}  # the smallest zip ships, however fast
_DONE = "done.json"


@dataclass(frozen=True)
class Setting:
    """A workload at one seed: what every run of it has in common."""

    name: str
    workload: Workload
    checkpoint: Path  # folder of model.pt
    folder: Path  # of the runs
    seed: int
    root: Path | None  # of the data

    @property
    def model_sha256(self) -> str:
        return hashlib.sha256((self.checkpoint / MODEL).read_bytes()).hexdigest()

    def directory(self, ablation: Ablation, mode: Mode) -> Path:
        return self.folder / (ablation.name if mode == "budget" else f"{ablation.name}-at-{mode}")

    def flags(self) -> list[str]:
        """Options of the command line that all runs share."""
        load, work = self.workload, self.workload.trained
        flags = [*data_flags(work, self.checkpoint, self.root), *model_flags(work, self.checkpoint)]
        flags += ["--objective", "size", "--seed", str(self.seed), "--threads", "1"]
        sets = [f"benchmark.{key}={value}" for key, value in TIMED.items()]
        for stage in ("prune", "sparsify"):
            sets += [f"{stage}.epochs={load.epochs:g}", f"{stage}.min_steps={load.min_steps}"]
            sets += [f"{stage}.finetune.learning_rate={load.learning_rate:g}"]
            sets += [f"{stage}.finetune.batch_size={load.batch_size}"]
        return flags + _set((*sets, *load.overrides))


@dataclass(frozen=True)
class Amounts:
    """What the full run removed; None: that stage removed nothing."""

    parameters: float | None  # share 0..1 that stayed
    sparsity: float | None  # zeros / weights, after prune

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Amounts:
        stages = {stage["stage"]: stage for stage in report["stages"]}
        prune, sparsify = stages["prune"], stages["sparsify"]
        before, after = (0, 0) if prune["skipped"] else prune["figures"]["parameters"]
        return cls(after / before if before else None, None if sparsify["skipped"] else sparsify["figures"]["sparsity"])

    def flags(self, ablation: Ablation, workload: Workload) -> list[str]:
        """Options of a run that removes so much in one round of each stage, whatever it loses, and stays float."""
        skip = {"prune": self.parameters is None, "sparsify": self.sparsity is None, "quantize": True}
        sets = ["prune.rounds=1", "sparsify.rounds=1"]
        sets += [] if self.parameters is None else [f"prune.parameters={self.parameters:.6f}"]
        sets += [] if self.sparsity is None else [f"sparsify.sparsity={self.sparsity:.6f}"]
        quarter = {
            "cut": f"{1 - (1 - (self.sparsity or 0.0)) ** 0.25:.6f}",
            "epochs": f"{workload.epochs / 4:g}",
            "min_steps": str(-(-workload.min_steps // 4)),
        }
        sets += [option.format(**quarter) for option in (*ablation.sets, *(ablation.amount or ()))]
        skipped = [f"--skip={stage}" for stage, away in skip.items() if away]
        return ["--max-drop", "1", *skipped, *_set(sets)]

    def tell(self, ablation: Ablation) -> bool:
        """Whether what is done otherwise is done at all where these amounts are removed."""
        missing = {"prune": self.parameters is None, "sparsify": self.sparsity is None}
        return ablation.first is None or not missing.get(ablation.first, False)


def _set(options: Sequence[str]) -> list[str]:
    return [part for option in options for part in ("--set", option)]


def run_flags(setting: Setting, ablation: Ablation, mode: Mode, amounts: Amounts | None) -> list[str]:
    """All options of one run."""
    if mode == "amount":
        assert amounts is not None
        return [*setting.flags(), *amounts.flags(ablation, setting.workload)]
    skip = [f"--skip={stage}" for stage in ablation.skip]
    return [*setting.flags(), "--max-drop", str(MAX_DROP), *skip, *_set(ablation.sets)]


def make(setting: Setting, ablation: Ablation, mode: Mode, flags: list[str], again: bool) -> str:
    """Run one ablation where that is not done yet; return "ok", or what went wrong in one line."""
    directory, done = setting.directory(ablation, mode), setting.directory(ablation, mode) / _DONE
    defaults = dataclasses.asdict(load_recipe(None, {"objective": "size"}))
    identity = fingerprint(flags=flags, model=setting.model_sha256, defaults=defaults)
    if again:
        shutil.rmtree(directory, ignore_errors=True)
    if done.exists():
        kept = json.loads(done.read_text())
        if kept["identity"] == identity:
            return str(kept["status"])
        done.unlink()
    _start_from(setting.directory(ABLATIONS[0], mode), directory)
    model = str(setting.checkpoint.absolute() / MODEL)
    command = [sys.executable, "-m", "compress", "pipeline", model, *flags, "--quiet", "--resume"]
    finished = subprocess.run([*command, "--out", str(directory.absolute())], capture_output=True, text=True)
    (directory / "log.txt").write_text(finished.stdout + finished.stderr)
    if finished.returncode < 0 or finished.returncode == STOPPED:  # the next start goes on with it
        raise SystemExit(f"the run in {directory} was stopped: start again to go on.")
    told = finished.stderr.strip().splitlines() or [f"status {finished.returncode}"]
    status = "ok" if finished.returncode in (0, NOT_MET) else told[-1]
    write_atomically(done, to_json({"identity": identity, "status": status, "flags": flags}))
    return status


def _start_from(full: Path, directory: Path) -> None:
    """Let ``directory`` be, or make it a copy of the full run's: --resume keeps the stages that are the same."""
    if directory.exists():
        return
    partial = directory.with_name(f"{directory.name}.copying")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if full.exists():
        shutil.copytree(full / "stages", partial / "stages")
    partial.rename(directory)


def rows_of(setting: Setting, chosen: Sequence[Ablation], again: Sequence[str]) -> Iterator[Row]:
    """Run what is not done yet, the full run first, and read what was found."""
    amounts: Amounts | None = None
    for ablation in chosen:
        for mode in ablation.modes:
            row = Row(setting.name, setting.seed, ablation.name, mode)
            source = ABLATIONS[0] if ablation.left_out else ablation
            if mode == "amount" and (amounts is None or not amounts.tell(ablation)):
                yield replace(row, status="the full run removes nothing in this stage")
                continue
            run_mode: Mode = "amount" if mode == "amount" else "budget"  # the weights are of the run within the budget
            directory, started = setting.directory(source, run_mode), time.perf_counter()
            fresh = ablation.name in again and mode != "weights" and source is ablation
            status = make(setting, source, run_mode, run_flags(setting, source, run_mode, amounts), fresh)
            if status != "ok":
                yield replace(row, status=status)
                if ablation.name == FULL:
                    raise SystemExit(f"{setting.name}, seed {setting.seed}: the full run failed: {status}")
                continue
            report = read_run(directory)
            if ablation.name == FULL and mode == "budget":
                amounts = Amounts.of(report)
                print(estimate(setting, chosen, report), file=sys.stderr, flush=True)
            yield found_in(row, report, ablation, directory, MAX_DROP)
            if time.perf_counter() - started > 1:
                print(f"{setting.name} seed {setting.seed}: {ablation.name}, {mode}", file=sys.stderr, flush=True)


def estimate(setting: Setting, chosen: Sequence[Ablation], report: Mapping[str, Any]) -> str:
    """How long the rest of a setting takes, by the seconds of the full run's stages; what is done takes none."""
    order = ("prune", "sparsify", "export", "quantize", "benchmark")
    seconds = {stage["stage"]: float(stage["seconds"]) for stage in report["stages"]}
    rounds = sum(len(s["figures"].get("rounds", ())) for s in report["stages"] if s["stage"] in ("prune", "sparsify"))
    once = 2 * (seconds["prune"] + seconds["sparsify"]) / max(1, rounds) + seconds["export"]
    total, runs = 0.0, 0
    for ablation in chosen:
        for mode in ablation.modes:
            if ablation.left_out or mode == "weights" or (setting.directory(ablation, mode) / _DONE).exists():
                continue
            runs += 1
            first = order.index(ablation.first or "prune")
            total += once if mode == "amount" else sum(seconds[stage] for stage in order[first:])
    return f"{setting.name} seed {setting.seed}: {runs} runs to do, about {total / 60:.0f} minutes"


def _workload(name: str, options: argparse.Namespace) -> Workload:
    given = {key: value for key in ("epochs", "min_steps") if (value := getattr(options, key)) is not None}
    return replace(WORKLOADS[name], **given)


def ablate(name: str, workload: Workload, chosen: Sequence[Ablation], options: argparse.Namespace) -> list[Row]:
    """All rows of a workload, of every seed."""
    rows: list[Row] = []
    for seed in options.seeds or workload.seeds:
        checkpoint = checkpoint_of(name, seed, options.checkpoints, options.data_root)
        folder = options.work / f"{name}-seed{seed}"
        setting = Setting(name, workload, checkpoint, folder, seed, options.data_root)
        found = list(rows_of(setting, chosen, options.again))
        data = load_data(*data_of(workload.trained, checkpoint, options.data_root))
        plan = Plan(seconds=options.seconds, launches=options.launches, seed=seed)
        rows += timed(found, folder, data, plan)
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), metavar="NAME", required=True)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", default=NAMES, help="besides the full run")
    parser.add_argument(
        "--again", nargs="+", choices=NAMES, metavar="NAME", default=[], help="runs that are made again"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="[default: those of the workload]")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="of benchmarks.train, at seed 0")
    parser.add_argument("--data-root", type=Path, help="folder of data that has to be named")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="runs that are done, and kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--epochs", type=float, help="of a round, in place of the workload's")
    parser.add_argument("--min-steps", type=int, help="of a round, in place of the workload's")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing each file")
    parser.add_argument("--launches", type=int, default=5, help="processes that each file is timed in")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    logging.disable(logging.WARNING)
    chosen = [ablation for ablation in ABLATIONS if ablation.name in (FULL, *options.only)]
    for name in options.workload:
        workload = _workload(name, options)
        rows = ablate(name, workload, chosen, options)
        budget = {"epochs": workload.epochs, "min_steps": workload.min_steps, "max_drop": MAX_DROP}
        machine = {**environment(threads=1), **versions()}
        print(write(rows, name, chosen, options.out, budget, machine))


if __name__ == "__main__":
    main()
