"""The benchmark of our own cost: seconds are booked once, bare steps train, and tables tell what was measured."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import own_cost, own_limits
from benchmarks.watched_run import TRAINING, WATCHED, Watch, replay
from compress.training import FineTuneConfig


@pytest.mark.parametrize(("module", "name", "what"), WATCHED)
def test_what_is_watched_is_a_function_of_the_package(module: str, name: str, what: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))
    assert what


def test_seconds_within_other_work_are_booked_once_and_none_while_paused() -> None:
    watch = Watch()
    inner = watch.wrap(lambda: time.sleep(0.05), "inner")

    def outer() -> None:
        inner()
        with watch.paused():
            time.sleep(0.3)

    watch.wrap(outer, "outer")()
    told = watch.told()
    assert 0.05 <= told["inner"]["s"] < 0.2
    assert told["outer"]["s"] < 0.1


def test_bare_steps_train_every_rounds_model(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 3))
    for number in range(2):
        torch.save(module, tmp_path / f"round-{number}.pt")
    data = {"inputs": (torch.randn(16, 1, 8, 8),), "labels": torch.arange(16) % 3, "teacher": torch.randn(16, 3)}
    torch.save({**data, "config": vars(FineTuneConfig(batch_size=8))}, tmp_path / "train.pt")
    found = replay(tmp_path, 4)
    assert [one["file"] for one in found] == ["round-0.pt", "round-1.pt"]
    assert all(one["channels_last"] for one in found)
    assert all(block[arm]["ms"] > 0 for one in found for block in one["blocks"] for arm in ("bare", "plain"))


def run_of(whole: float, training: float) -> dict[str, Any]:
    work = {TRAINING: {"s": training, "cpu_s": training}, "export": {"s": 2.0, "cpu_s": 1.0}}
    rounds = [{"steps": 100, "label": "prune"}, {"steps": 50, "label": "sparsify"}]
    return {"whole": {"s": whole, "cpu_s": whole, "peak_bytes": 1 << 30}, "work": work, "rounds": rounds}


def blocks(*ms: float) -> dict[str, Any]:
    return {"blocks": [{arm: {"ms": m, "cpu_ms": m} for arm in ("bare", "plain")} for m in ms]}


def test_overhead_is_the_whole_run_over_the_bare_steps_of_each_rounds_own_model() -> None:
    found = own_cost.ratios(run_of(12.0, 11.0), [blocks(80, 80, 90), blocks(40)])
    assert found["bare_s"] == pytest.approx(100 * 0.08 + 50 * 0.04)
    assert found["overhead_s"] == pytest.approx(0.2)
    assert found["loop_overhead_s"] == pytest.approx(0.1)
    table = own_cost.overhead_table([{"workload": "cnn", "objective": "size", "run": run_of(12.0, 11.0), **found}])
    assert "| cnn | size | 150 | 12 s | 10 s | +20.0% (+20.0%) |" in table
    assert "| cnn | export | 2.0 | 20.0% |" in table


@pytest.mark.parametrize("family", list(own_cost.FAMILIES))
@pytest.mark.parametrize("parameters", [200_000, 1_000_000])
def test_a_family_has_the_parameters_that_it_is_asked_for(family: str, parameters: int) -> None:
    module = own_cost.FAMILIES[family](parameters).eval()
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(parameters, rel=0.05)
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_growth_is_told_with_all_that_is_no_training() -> None:
    found = {"family": "mlp", "parameters": 10, "images": 5, "other_s": 2.0, "run": run_of(4.0, 2.0)}
    assert "| mlp | 10 | 5 | 1,024 MiB | 2.0 s | 2.0 |" in own_cost.growth_table([found])


def test_masks_and_groups_are_held_against_the_least_they_could_take() -> None:
    masks = own_limits.selecting(100_000, "lamp")
    assert masks["gb_per_s"] * masks["s"] == pytest.approx(4e-9 * masks["weights"])
    groups = own_limits.finding("cnn", own_limits.MODELS["cnn"])
    assert groups["groups"] > 0
    assert groups["s"] > 0
    table = own_limits.table({"groups": [groups], "masks": [masks], "calibration": []})
    assert f"cnn: {groups['groups']} groups" in table
