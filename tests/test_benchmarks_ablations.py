"""Ablations: what each runs with, what it takes over from the full run, and what the tables tell."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ablated, ablations
from benchmarks.ablated import Row, found_in, markdown, timed, write
from benchmarks.ablation_table import ABLATIONS, FULL, Ablation, Mode
from benchmarks.ablations import Amounts, Setting, estimate, make, rows_of, run_flags
from benchmarks.compare.inputs import MAX_DROP
from benchmarks.workloads import WORKLOADS
from compress.data import DataOptions, load_data
from compress.measurement import Accuracy, Ratio, Timing
from compress.measurement.latency import Plan
from compress.pipeline import run
from compress.recipe import Recipe, load_recipe
from tests.conftest import QUICK

BY_NAME = {ablation.name: ablation for ablation in ABLATIONS}
AMOUNTS = Amounts(parameters=0.125, sparsity=0.9375)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.pt").write_bytes(b"weights")
    name = "lenet-300-100-mnist"
    return Setting(name, WORKLOADS[name], tmp_path / "checkpoint", tmp_path / "runs", 0, None)


def recipe_of(flags: list[str]) -> Recipe:
    """What the options of a run come to, as `compress pipeline` reads them."""
    sets = [value for flag, value in pairwise(flags) if flag == "--set"]
    skip = tuple(flag.partition("=")[2] for flag in flags if flag.startswith("--skip="))
    drop = float(flags[flags.index("--max-drop") + 1])
    return load_recipe(Path("model.pt"), {"objective": "size", "max_drop": drop, "skip": skip}, sets)


def variant(name: str, zipped: int, drop: float, stage: str = "quantize") -> dict[str, Any]:
    return {
        "name": name,
        "stage": stage,
        "file": f"stages/{name}.onnx",
        "raw_bytes": 2 * zipped,
        "zip_bytes": zipped,
        "parameters": 10,
        "nonzero": 5,
        "fidelity": 0.9,
        "accuracy": {"value": 0.9 - drop, "low": 0.8, "high": 0.95, "n": 100},
        "drop": drop,
        "drop_interval": {"low": drop - 0.02, "high": drop + 0.02},
        "validation": {"drop": drop},
    }


REPORT: Mapping[str, Any] = {
    "shipped": "pruned-sparse-int8-rounded",
    "variants": [
        variant("baseline-fp32", 1000, 0.0),
        variant("pruned-fp32", 500, 0.001),
        variant("pruned-sparse-fp32", 200, 0.004),
        variant("pruned-sparse-int8", 90, 0.006),
        variant("pruned-sparse-shared-16", 70, 0.011),
        variant("pruned-sparse-int8-rounded", 60, 0.008),
    ],
    "stages": [
        {"stage": "baseline", "seconds": 1.0, "skipped": None, "figures": {}},
        {
            "stage": "prune",
            "seconds": 60.0,
            "skipped": None,
            "figures": {"parameters": [800, 100], "rounds": [{}, {}, {}, {}]},
        },
        {
            "stage": "sparsify",
            "seconds": 60.0,
            "skipped": None,
            "figures": {"sparsity": 0.9375, "rounds": [{}, {}, {}, {}]},
        },
        {"stage": "export", "seconds": 0.0, "skipped": None, "figures": {}},
        {"stage": "quantize", "seconds": 30.0, "skipped": None, "figures": {}},
        {"stage": "benchmark", "seconds": 0.0, "skipped": None, "figures": {}},
    ],
}


def test_names_are_all_different_and_the_full_run_comes_first() -> None:
    assert len(BY_NAME) == len(ABLATIONS)
    assert ABLATIONS[0].name == FULL
    assert ABLATIONS[0].first is None
    assert not any("|" in ablation.name + ablation.change for ablation in ABLATIONS)  # they are cells of a table


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda ablation: ablation.name)
def test_every_ablation_is_a_recipe_that_differs_from_the_full_run(ablation: Ablation, setting: Setting) -> None:
    full = recipe_of(run_flags(setting, ABLATIONS[0], "budget", None))
    found = recipe_of(run_flags(setting, ablation, "budget", None))
    takes_no_run = ablation.name == FULL or bool(ablation.left_out)
    assert (found == full) == takes_no_run
    assert found.max_drop == full.max_drop == MAX_DROP


@pytest.mark.parametrize("ablation", [a for a in ABLATIONS if "amount" in a.modes], ids=lambda a: a.name)
def test_at_fixed_amounts_all_remove_as_much_in_as_many_steps(ablation: Ablation, setting: Setting) -> None:
    recipe = recipe_of(run_flags(setting, ablation, "amount", AMOUNTS))
    assert (recipe.prune.parameters, recipe.prune.rounds, recipe.sparsify.sparsity) == (0.125, 1, 0.9375)
    assert (recipe.max_drop, recipe.skip) == (1, ("quantize",))
    sparsify, whole = recipe.sparsify, setting.workload
    assert sparsify.rounds * sparsify.epochs == whole.epochs
    assert sparsify.rounds * sparsify.min_steps == whole.min_steps
    if sparsify.schedule == "iterative":
        assert (1 - sparsify.cut) ** sparsify.rounds == pytest.approx(1 - 0.9375, abs=1e-5)


def test_amounts_are_what_the_full_run_left_and_none_of_a_stage_that_was_skipped() -> None:
    assert Amounts.of(REPORT) == AMOUNTS
    stages = [{**stage, "skipped": "no reduction" if stage["stage"] == "prune" else None} for stage in REPORT["stages"]]
    without = Amounts.of({**REPORT, "stages": stages})
    assert without == Amounts(None, 0.9375)
    assert not without.tell(BY_NAME["prune-l1"])
    assert without.tell(BY_NAME["sparsify-random"])


def test_the_training_budget_of_the_workload_reaches_both_stages(setting: Setting) -> None:
    recipe = recipe_of(run_flags(setting, ABLATIONS[0], "budget", None))
    for stage in (recipe.prune, recipe.sparsify):
        assert (stage.epochs, stage.min_steps) == (setting.workload.epochs, setting.workload.min_steps)
        assert stage.finetune.learning_rate == setting.workload.learning_rate


def test_an_ablation_of_what_ships_reads_the_full_run_and_keeps_the_budget() -> None:
    row = Row("w", 0, "x", "budget")
    found = found_in(row, REPORT, Ablation("x", "", left_out=("*-rounded",)), Path("runs/full"), 0.01)
    assert (found.variant, found.zip_bytes) == ("pruned-sparse-int8", 90)  # shared-16 is smaller, and loses too much
    assert found.file == "full/stages/pruned-sparse-int8.onnx"
    nothing = found_in(row, REPORT, Ablation("x", "", left_out=("pruned-*",)), Path("runs/full"), 0.01)
    assert nothing.variant == "baseline-fp32"


@pytest.mark.parametrize(
    ("mode", "file", "expected"),
    [
        ("budget", None, "pruned-sparse-int8-rounded"),
        ("amount", None, "pruned-sparse-fp32"),
        ("weights", "*-int8", "pruned-sparse-int8"),
        ("weights", "*-int8-learned", None),
    ],
)
def test_each_mode_looks_at_its_own_file(mode: Mode, file: str | None, expected: str | None) -> None:
    found = found_in(Row("w", 0, "x", mode), REPORT, Ablation("x", "", file=file), Path("runs/x"), 0.01)
    assert found.variant == expected
    assert (found.status == "ok") == (expected is not None)


class Ran:
    """In place of a process: what was asked for, and the run that it would have left."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.commands = status, list[list[str]]()
        self.copied = list[list[str]]()

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        out = Path(command[command.index("--out") + 1])
        self.copied.append(sorted(path.name for path in (out / "stages").glob("*")))
        (out / "stages" / "01-prune").mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(REPORT))
        return subprocess.CompletedProcess(command, self.status, "", "Error: no such thing")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    found = Ran()
    monkeypatch.setattr(subprocess, "run", found)
    monkeypatch.setattr(ablations, "read_run", lambda root: json.loads((root / "report.json").read_text()))
    return found


def test_what_is_done_is_not_done_again_until_a_flag_changes(setting: Setting, ran: Ran) -> None:
    ablation = BY_NAME["minmax"]
    for flags in (["--a"], ["--a"], ["--b"]):
        assert make(setting, ablation, "budget", flags, again=False) == "ok"
    assert [command[command.index("pipeline") + 2] for command in ran.commands] == ["--a", "--b"]
    assert all("--resume" in command for command in ran.commands)


def test_runs_go_on_from_the_full_run_of_their_mode(setting: Setting, ran: Ran) -> None:
    chosen = [ABLATIONS[0], BY_NAME["sparsify-random"], BY_NAME["no-sharing"]]
    rows = list(rows_of(setting, chosen, again=()))
    outs = [Path(command[command.index("--out") + 1]).name for command in ran.commands]
    assert outs == ["full", "full-at-amount", "sparsify-random", "sparsify-random-at-amount"]
    assert ran.copied == [[], [], ["01-prune"], ["01-prune"]]
    assert [(row.ablation, row.mode) for row in rows] == [
        *((FULL, mode) for mode in ("budget", "amount", "weights")),
        *(("sparsify-random", mode) for mode in ("budget", "amount")),
        ("no-sharing", "budget"),
    ]


def test_a_run_that_fails_is_a_row_with_its_error_and_is_kept(setting: Setting, ran: Ran) -> None:
    list(rows_of(setting, [ABLATIONS[0]], again=()))
    ran.status = 1
    rows = list(rows_of(setting, [ABLATIONS[0], BY_NAME["minmax"]], again=()))
    assert [row.status for row in rows if row.ablation == "minmax"] == ["Error: no such thing"] * 2
    ran.status = 0
    assert [row.status for row in rows_of(setting, [ABLATIONS[0], BY_NAME["minmax"]], again=["minmax"])][-1] == "ok"


def test_a_run_that_was_stopped_is_not_kept_as_one_that_failed(setting: Setting, ran: Ran) -> None:
    ran.status = ablations.STOPPED
    with pytest.raises(SystemExit, match="start again to go on"):
        make(setting, BY_NAME["minmax"], "budget", [], again=False)
    ran.status = 0
    assert make(setting, BY_NAME["minmax"], "budget", [], again=False) == "ok"


def test_the_estimate_counts_the_stages_that_are_made_again(setting: Setting) -> None:
    told = estimate(setting, [ABLATIONS[0], BY_NAME["minmax"], BY_NAME["no-int4"]], REPORT)
    # full: 150 s and, at its amounts, two of eight rounds; minmax: quantize alone; no-int4: nothing.
    assert told.endswith(f"3 runs to do, about {(150 + 30 + 30) / 60:.0f} minutes")


def test_equal_files_are_timed_once_and_the_full_run_is_the_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def together(jobs: list[Any], plan: Plan) -> list[Timing]:
        asked.extend(job.path for job in jobs)
        samples = np.ones((2, 2, 3))
        return [ablated_timing(samples * (1 + number)) for number in range(len(jobs))]

    monkeypatch.setattr(ablated, "time_together", together)
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    rows = [Row("w", 0, name, "budget", file=file) for name, file in ((FULL, "a"), ("same", "b"), ("other", "c"))]
    rows.append(Row("w", 0, FULL, "amount", file="a"))
    found = timed(rows, tmp_path, load_data("digits", DataOptions()), Plan(launches=2, rounds=4))
    assert len(asked) == 2
    assert [row.p50_ratio.value if row.p50_ratio else None for row in found] == [1, 1, 2, None]


def ablated_timing(samples: np.ndarray[Any, np.dtype[np.float64]]) -> Timing:
    from compress.measurement.timing import summary

    return summary(samples, provider="CPUExecutionProvider", batch=1, threads=1)


def row(name: str, seed: int, zipped: int, accuracy: float) -> Row:
    found = Accuracy(accuracy, accuracy - 0.01, accuracy + 0.01, 1000)
    ratio = Ratio(1.5, 1.4, 1.6, True)
    known: dict[str, Any] = {"raw_bytes": zipped, "zip_bytes": zipped, "validation_drop": 0.005, "fidelity": 0.95}
    return Row("w", seed, name, "budget", variant="int8", test=found, p50_ms=1.0, p50_ratio=ratio, **known)


def test_the_table_has_means_over_seeds_against_the_full_run_of_the_same_seed() -> None:
    chosen = [ABLATIONS[0], BY_NAME["no-prune"], BY_NAME["minmax"]]
    rows = [row(FULL, 0, 100, 0.9), row(FULL, 1, 400, 0.92), row("no-prune", 0, 200, 0.9), row("no-prune", 1, 800, 0.9)]
    rows += [replace(row("minmax", seed, 1, 0.9), status="Error: no file") for seed in (0, 1)]
    lines = markdown(rows, "w", chosen).splitlines()
    told = {line.split(":")[0].strip("| "): line for line in lines if line.startswith("|")}
    assert "| 500 | 2.00 (2.00 to 2.00) | 1.50 (1.50 to 1.50) | 0.9000 |" in told["no-prune"]
    assert "0.9100 [0.7829, 1.0371]" in told[FULL]  # mean of .90 and .92, t with one degree of freedom
    assert "Error: no file" in told["minmax"]


def test_one_seed_has_the_interval_of_its_own_test_samples(tmp_path: Path) -> None:
    machine = {"cpu": "Some CPU", "isa": ["avx2", "vnni"], "onnxruntime": "1"}
    target = write([row(FULL, 0, 100, 0.9)], "w", [ABLATIONS[0]], tmp_path, {"epochs": 1}, machine)
    assert target.name == "ablations-w-seeds1-some-cpu-vnni-threads1.json"
    assert "0.9000 [0.8900, 0.9100]" in target.with_suffix(".md").read_text()
    assert json.loads(target.read_text())["rows"][0]["zip_bytes"] == 100


def test_a_copied_run_trains_nothing_again_for_another_option_of_quantization(
    finished: Path, quick: Callable[..., Recipe], tmp_path: Path
) -> None:
    started = tmp_path / "run"
    ablations._start_from(finished, started)
    stages = ("00-baseline", "01-prune", "02-sparsify", "03-export", "04-quantize")
    before = [(started / "stages" / stage / "record.json").stat().st_mtime_ns for stage in stages]
    run(quick(quantize={**QUICK["quantize"], "rounding": "nearest", "equalize": "no"}, resume=True))
    after = [(started / "stages" / stage / "record.json").stat().st_mtime_ns for stage in stages]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, True, True, False]
