"""What a run tells about its sparsity: the dense twin beside the sparse file, and the pictures of the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress import pipeline
from compress.errors import SparsityError
from compress.measurement.size import zip_bytes
from compress.pipeline import STAGES, run
from compress.recipe import Recipe
from compress.values import Context, StageRecord, State

Quick = Callable[..., Recipe]


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def test_the_pruned_model_is_a_variant_that_the_sparse_one_is_compared_with(finished: Path) -> None:
    variants = {v["name"]: v for v in report_of(finished)["variants"]}
    twin, sparse = variants["pruned-fp32"], variants["pruned-sparse-fp32"]
    assert (twin["stage"], twin["file"]) == ("prune", "stages/01-prune/model.onnx")
    assert twin["parameters"] == sparse["parameters"]
    assert twin["nonzero"] > sparse["nonzero"]
    gain = sparse["sparsity_gain"]
    assert (gain["twin"], gain["estimated"]) == ("pruned-fp32", False)
    assert gain["dense_zip_bytes"] == zip_bytes(finished / twin["file"])
    assert gain["zip_ratio"] == pytest.approx(twin["zip_bytes"] / sparse["zip_bytes"])
    assert gain["zip_ratio"] > 1.3
    assert 0 < gain["latency_ratio"]["low"] <= gain["latency_ratio"]["value"] <= gain["latency_ratio"]["high"]


def test_sparse_int8_variants_are_compared_with_an_estimate(finished: Path) -> None:
    variants = {v["name"]: v for v in report_of(finished)["variants"]}
    gain = variants["pruned-sparse-int8"]["sparsity_gain"]
    assert gain["twin"] is gain["latency_ratio"] is None
    assert gain["estimated"]
    assert gain["dense_zip_bytes"] < variants["pruned-fp32"]["zip_bytes"]
    assert gain["zip_ratio"] > 1.1


def test_every_report_tells_what_sparsity_gained(finished: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (finished / name).read_text()
        assert "Sparsity: pruned-sparse-fp32 zips" in text
        assert "smaller than pruned-fp32; latency" in text
        assert "(estimated)" in text


def test_the_pictures_of_the_weights_are_files_of_the_run(finished: Path) -> None:
    names = {f"plots/{name}.{kind}" for name in ("parameters", "histograms") for kind in ("svg", "png")}
    assert {p.relative_to(finished).as_posix() for p in (finished / "plots").iterdir()} == names
    assert names <= set(json.loads((finished / "manifest.json").read_text())["files"])
    assert 'id="histogram-0-title"' in (finished / "report.html").read_text()


@pytest.mark.parametrize("how", ["overwrite", "resume"])
def test_a_run_that_takes_the_place_of_another_leaves_no_old_picture(
    how: str, finished: Path, quick: Quick, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    run(quick(skip=("prune", "sparsify"), **{how: True}))
    assert not (tmp_path / "run" / "plots").exists()


@pytest.mark.parametrize("skipped", [True, False])
def test_a_pruned_model_that_is_not_sparsified_is_exported_once(skipped: bool, quick: Quick, tmp_path: Path) -> None:
    def find_nothing(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
        return state, StageRecord("sparsify", {}, 0.0, skipped="no sparsity stayed within the budget")

    stages = tuple(replace(s, run=find_nothing) if s.name == "sparsify" else s for s in STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "STAGES", stages)
        run(quick(skip=("sparsify",) if skipped else ()))
    report = report_of(tmp_path / "run")
    names = [v["name"] for v in report["variants"]]
    assert names[:2] == ["baseline-fp32", "pruned-fp32"]
    assert all(name.startswith("pruned-int8") for name in names[2:])
    assert next(s["skipped"] for s in report["stages"] if s["stage"] == "export") == "nothing changed since pruned-fp32"
    assert all(v["sparsity_gain"] is None for v in report["variants"])


def test_a_resumed_run_reads_the_twin_back(finished: Path, quick: Quick, tmp_path: Path) -> None:
    before, copied = report_of(finished), tmp_path / "run"
    shutil.copytree(finished, copied)
    stamp = (copied / "stages/01-prune/record.json").stat().st_mtime_ns
    run(quick(resume=True))
    assert (copied / "stages/01-prune/record.json").stat().st_mtime_ns == stamp
    assert [v["sparsity_gain"] for v in report_of(copied)["variants"]] == [
        v["sparsity_gain"] for v in before["variants"]
    ]


def test_a_layer_that_there_is_not_is_told_before_any_training(quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(SparsityError, match="nowhere"):
        run(quick(sparsify={"layers": {"nowhere": 0.5}}))
    assert not (tmp_path / "run").exists()
