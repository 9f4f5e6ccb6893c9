"""The whole path on a tiny model: the contract of the run directory, resume, refusals, sources that are not modules."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compress import pipeline
from compress.data import DataOptions, Tokenizer, load_data
from compress.errors import CompressError, SparsityError, WorkspaceError
from compress.models.counts import count_weights
from compress.models.onnx_file import provenance, read, serialize
from compress.models.reference import LSTMClassifier
from compress.pipeline import STAGES, run
from compress.recipe import Recipe, load_recipe
from compress.reporting.schema import validate
from compress.training import FineTuneConfig, finetune
from compress.values import Context, StageRecord, State
from tests.conftest import QUICK, tiny_cnn

Quick = Callable[..., Recipe]
STAGE_NAMES = [stage.name for stage in STAGES]


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def without_timings(report: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on when and how fast the run was."""
    variants = [{k: v for k, v in variant.items() if k not in ("latency", "limit")} for variant in report["variants"]]
    for variant in variants:
        variant["sparsity_gain"] = {**(variant["sparsity_gain"] or {}), "latency_ratio": None}
    verdict = {k: v for k, v in report["verdict"].items() if "speedup" not in k}
    same = {key: report[key] for key in ("shipped", "data", "layers", "changed")}
    return {"variants": variants, "verdict": verdict, **same}


def test_the_run_directory_holds_exactly_what_the_design_says(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {
        "report.json", "report.md", "report.html", "report.csv", "model.onnx", "model.onnx.zip", "manifest.json",
        "stages", "plots",
    }  # fmt: skip
    stages = sorted(p.name for p in (finished / "stages").iterdir())
    assert stages == ["00-baseline", "01-prune", "02-sparsify", "03-export", "04-quantize", "05-benchmark"]
    assert all((finished / "stages" / s / "record.json").is_file() for s in stages)


def test_the_report_has_every_field_of_version_1(finished: Path) -> None:
    report = report_of(finished)
    validate(report)
    assert report["schema"] == 1
    assert {"command", "seed", "environment", "data", "variants", "shipped", "verdict"} <= set(report)
    assert {"cpu", "isa", "threads", "torch", "onnxruntime"} <= set(report["environment"])
    assert {"name", "train", "calibration", "validation", "test", "sha256"} <= set(report["data"])
    assert {"max_drop", "drop", "passed", "zip_ratio", "speedup"} <= set(report["verdict"])
    for variant in report["variants"]:
        assert {"name", "stage", "file", "parameters", "nonzero", "macs", "raw_bytes", "zip_bytes"} <= set(variant)
        assert set(variant["accuracy"]) >= {"value", "low", "high", "n"}
        assert 0 <= variant["fidelity"] <= 1
        assert (finished / variant["file"]).is_file()
        assert variant["raw_bytes"] == (finished / variant["file"]).stat().st_size
        for timing in variant["latency"]:
            assert timing["status"] == "ok"
            assert 0 < timing["p50_ms"] <= timing["p90_ms"] <= timing["p99_ms"]
            assert timing["samples"] > 0


def test_the_report_tells_how_the_shipped_file_came_about(finished: Path) -> None:
    report = report_of(finished)
    steps = [(step["stage"], step["variant"]) for step in report["journey"]]
    assert steps[:3] == [("baseline", "baseline-fp32"), ("prune", "pruned-fp32"), ("sparsify", "pruned-sparse-fp32")]
    assert steps[3:] == [("quantize", report["shipped"])]
    (first, *_), widths = report["layers"], [(each["name"], each["before"]["channels"]) for each in report["layers"]]
    assert widths == [("0", 8), ("6", 32), ("8", 10)]
    assert first["after"]["nonzero"] < first["before"]["nonzero"]
    assert sum(first["histogram"]["before"]) == first["before"]["nonzero"]
    assert report["sensitivity"]["layers"] == ["0", "6", "8"]
    assert report["machine"]["fp32_gmacs"] > 0
    shipped = next(v for v in report["variants"] if v["name"] == report["shipped"])
    assert len(report["changed"]) == min(12, round((1 - shipped["fidelity"]) * shipped["accuracy"]["n"]))
    assert not {"machine", "sensitivity"} & set(report["stages"][-1]["figures"])


def test_raw_samples_are_in_the_record_and_not_in_the_report(finished: Path) -> None:
    record = json.loads((finished / "stages" / "05-benchmark" / "record.json").read_text())
    for measurement in record["measurements"]:
        for timing in measurement["latency"]:
            assert len(timing["samples_ms"]) == timing["samples"]
    assert "samples_ms" not in (finished / "report.json").read_text()


def test_every_stage_adds_its_variant_and_the_counts_are_right(finished: Path) -> None:
    variants = {v["name"]: v for v in report_of(finished)["variants"]}
    assert {"baseline-fp32", "pruned-sparse-fp32", "pruned-sparse-int8", "pruned-sparse-int8-weights"} <= set(variants)
    # conv 8·9 + 8 (batch norm folded into it), fc 128·32 + 32, fc 32·10 + 10
    assert variants["baseline-fp32"]["parameters"] == 80 + 4128 + 330
    assert variants["baseline-fp32"]["macs"] == 8 * 9 * 64 + 128 * 32 + 32 * 10
    assert variants["baseline-fp32"]["fidelity"] == 1.0
    small, dense = variants["pruned-sparse-fp32"], variants["baseline-fp32"]
    assert small["macs"] <= 0.7 * dense["macs"]
    assert small["parameters"] < dense["parameters"]
    assert small["nonzero"] < 0.45 * small["parameters"]
    assert variants["pruned-sparse-int8"]["nonzero"] <= small["nonzero"]


def test_the_shipped_file_is_the_variant_that_the_verdict_names(finished: Path) -> None:
    report = report_of(finished)
    shipped = next(v for v in report["variants"] if v["name"] == report["shipped"])
    baseline = report["variants"][0]
    stamped = read(finished / "model.onnx")
    assert [entry.key for entry in stamped.metadata_props] == ["compress"]
    del stamped.metadata_props[:]
    assert serialize(stamped) == (finished / shipped["file"]).read_bytes()
    with zipfile.ZipFile(finished / "model.onnx.zip") as archive:
        assert archive.read("model.onnx") == (finished / "model.onnx").read_bytes()
    zipped = (finished / "model.onnx.zip").stat().st_size
    verdict = report["verdict"]
    assert verdict["zip_ratio"] == pytest.approx(baseline["raw_bytes"] / zipped)
    assert shipped["zip_bytes"] < zipped < shipped["zip_bytes"] + 500  # the stamp
    assert verdict["drop"] == pytest.approx(baseline["accuracy"]["value"] - shipped["accuracy"]["value"])
    assert verdict["passed"] == (verdict["drop"] <= verdict["max_drop"])
    smallest = min(v["zip_bytes"] for v in report["variants"] if v["validation"]["drop"] <= 0.1)
    assert shipped["zip_bytes"] == smallest


def test_the_shipped_file_tells_its_source_and_its_accuracy(finished: Path, model_file: Path) -> None:
    report, told = report_of(finished), provenance(finished / "model.onnx")
    shipped = next(v for v in report["variants"] if v["name"] == report["shipped"])
    assert told["source"] == hashlib.sha256(model_file.read_bytes()).hexdigest()[:16]
    assert (told["variant"], told["samples"]) == (report["shipped"], shipped["accuracy"]["n"])
    assert told["accuracy"] == pytest.approx(shipped["accuracy"]["value"], abs=1e-6)
    assert told["versions"]["onnxruntime"] == onnxruntime.__version__


def test_the_accuracy_in_the_report_is_that_of_the_file(finished: Path, digits_file: Path) -> None:
    report = report_of(finished)
    shipped = next(v for v in report["variants"] if v["name"] == report["shipped"])
    split = load_data(f"npz:{digits_file}", DataOptions(calibration=64)).test
    (x,), y = split.fetch(split.indices)
    session = onnxruntime.InferenceSession(finished / "model.onnx", providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert shipped["accuracy"]["n"] == len(split)
    assert shipped["accuracy"]["value"] == pytest.approx(float((output.argmax(1) == y.numpy()).mean()))


def test_no_path_of_this_machine_is_in_any_file(finished: Path) -> None:
    here = str(Path(pipeline.__file__).parent.parent).encode()
    for path in finished.rglob("*"):
        if path.suffix in (".onnx", ".zip", ".safetensors"):
            assert here not in path.read_bytes(), path
            assert str(Path.home()).encode() + b"/" not in path.read_bytes(), path


def test_the_manifest_covers_every_file(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    files = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files
    assert {"seed", "command", "environment"} <= set(manifest)


def test_the_same_seed_gives_the_same_bytes(finished: Path, quick: Quick, tmp_path: Path) -> None:
    run(quick(out=tmp_path / "again"))
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (finished / "model.onnx").read_bytes()
    assert (tmp_path / "again" / "model.onnx.zip").read_bytes() == (finished / "model.onnx.zip").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from compress import pipeline, workspace
from compress.recipe import load_recipe
import json
stage, model, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
finish = workspace.Workspace.finish
def killed(self, name, record):
    if name.endswith(stage):
        os.kill(os.getpid(), signal.SIGKILL)  # its files are written, its name is not
    finish(self, name, record)
workspace.Workspace.finish = killed
pipeline.run(load_recipe(model, options))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_a_run_killed_in_a_stage_resumes_to_the_same_result(
    stage: str, finished: Path, model_file: Path, digits_file: Path, tmp_path: Path
) -> None:
    """The stages before it come from a whole run: those of a run that was stopped there, byte for byte."""
    options = {"data": f"npz:{digits_file}", "out": str(tmp_path / "run"), "resume": True, **QUICK}
    stages = tmp_path / "run" / "stages"
    stages.mkdir(parents=True)
    for earlier in STAGES[: STAGE_NAMES.index(stage)]:
        shutil.copytree(finished / "stages" / earlier.directory, stages / earlier.directory)
    stamps = {path: path.stat().st_mtime_ns for path in stages.glob("*/record.json")}
    child = subprocess.run(
        [sys.executable, "-c", KILLED, stage, str(model_file), json.dumps(options)], capture_output=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert not (tmp_path / "run" / "model.onnx").exists()
    assert sorted(stages.glob("*/record.json")) == sorted(stamps)
    assert [path.suffix for path in stages.iterdir() if path / "record.json" not in stamps] == [".partial"]

    run(load_recipe(model_file, options))

    for record, stamp in stamps.items():
        assert record.stat().st_mtime_ns == stamp, f"{record.parent.name} ran again"
    assert (tmp_path / "run" / "model.onnx").read_bytes() == (finished / "model.onnx").read_bytes()
    assert without_timings(report_of(tmp_path / "run")) == without_timings(report_of(finished))


KILLED_CALIBRATING = """
import json, os, signal, sys
from pathlib import Path
from compress import pipeline
from compress.quantization import calibration
from compress.recipe import load_recipe
def progress(label, done, total, note=""):
    if label == "calibrating" and done >= total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
calibration._SAVE_SECONDS = 0.0
pipeline.run(load_recipe(Path(sys.argv[1]), json.loads(sys.argv[2])), progress)
"""


@pytest.mark.slow
def test_a_run_killed_in_its_calibration_goes_on_to_the_same_bytes(
    model_file: Path, digits_file: Path, tmp_path: Path
) -> None:
    options = {
        **QUICK,
        "data": f"npz:{digits_file}",
        "skip": ["prune", "sparsify"],
        "quantize": {"method": "static", "batch_size": 8, "compact": "no"},
    }
    run(load_recipe(model_file, {**options, "out": tmp_path / "whole"}))
    stopped = {**options, "out": str(tmp_path / "run")}
    child = subprocess.run(
        [sys.executable, "-c", KILLED_CALIBRATING, str(model_file), json.dumps(stopped)],
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert (tmp_path / "run" / "cache" / "calibration.npz").is_file()
    told: list[int] = []

    def progress(label: str, done: int, total: int, note: str = "") -> None:
        if label == "calibrating":
            told.append(done)

    run(load_recipe(model_file, {**stopped, "resume": True}), progress)
    assert told[0] == 40  # 32 of 64 samples were kept
    for file in (tmp_path / "whole").rglob("*.onnx*"):
        assert (tmp_path / "run" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes(), file
    assert not (tmp_path / "run" / "cache").exists()


def test_resume_runs_again_what_other_options_would_change(quick: Quick, tmp_path: Path) -> None:
    run(quick(skip=("prune", "sparsify")))
    before = (tmp_path / "run" / "stages" / "00-baseline" / "record.json").stat().st_mtime_ns
    run(quick(skip=("prune", "sparsify", "quantize"), resume=True))
    report = report_of(tmp_path / "run")
    assert (tmp_path / "run" / "stages" / "00-baseline" / "record.json").stat().st_mtime_ns == before
    assert [v["name"] for v in report["variants"]] == ["baseline-fp32"]


def test_a_benchmark_of_an_earlier_version_runs_again_and_what_was_trained_stays(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"skip": ("prune", "sparsify", "quantize")}
    with monkeypatch.context() as earlier:
        earlier.setattr(pipeline, "STAGES", (*STAGES[:-1], replace(STAGES[-1], version=0)))
        run(quick(**options))
    stages = tmp_path / "run" / "stages"
    record = json.loads((stages / "05-benchmark" / "record.json").read_text())
    record["measurements"] = [{"variant": "baseline-fp32", "raw_bytes": 1, "zip_bytes": 1}]
    (stages / "05-benchmark" / "record.json").write_text(json.dumps(record))
    before = (stages / "00-baseline" / "record.json").stat().st_mtime_ns
    run(quick(**options, resume=True))
    assert (stages / "00-baseline" / "record.json").stat().st_mtime_ns == before
    assert report_of(tmp_path / "run")["variants"][0]["raw_bytes"] > 1


def test_a_directory_with_a_run_in_it_is_refused(quick: Quick, tmp_path: Path) -> None:
    (tmp_path / "run" / "stages").mkdir(parents=True)
    with pytest.raises(WorkspaceError, match="--resume"):
        run(quick())


def test_no_variant_within_the_budget_ships_the_baseline_and_fails_the_gate(quick: Quick, tmp_path: Path) -> None:
    def ruin(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
        state, record = next(s for s in STAGES if s.name == "quantize").run(state, recipe, context)
        for variant in state.variants[1:]:
            model = onnx.load(variant.onnx.path)
            for tensor in model.graph.initializer:
                array = onnx.numpy_helper.to_array(tensor)
                if tensor.data_type == onnx.TensorProto.INT8 and array.size > 32:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(array), tensor.name))
            onnx.save(model, variant.onnx.path)
        return state, record

    stages = tuple(replace(s, run=ruin) if s.name == "quantize" else s for s in STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "STAGES", stages)
        report = run(quick(skip=("prune", "sparsify"), max_drop=0.0))
    written = report_of(tmp_path / "run")
    assert written["shipped"] == "baseline-fp32"
    assert written["verdict"]["passed"] is False
    assert report.to_dict()["verdict"]["passed"] is False


def test_zeros_that_a_stage_lost_stop_the_run(quick: Quick) -> None:
    def refill(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
        state, record = next(s for s in STAGES if s.name == "export").run(state, recipe, context)
        model = onnx.load(state.variants[-1].onnx.path)
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.ndim == 2:
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(np.where(array == 0, np.float32(1e-9), array), tensor.name)
                )
        onnx.save(model, state.variants[-1].onnx.path)
        return state, record

    stages = tuple(replace(s, run=refill) if s.name == "export" else s for s in STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "STAGES", stages)
        with pytest.raises(SparsityError, match="zeros were not kept"):
            run(quick())


def test_masks_hold_through_export_and_quantization(finished: Path) -> None:
    counts = {
        name: sum(nonzero for _, nonzero in count_weights(finished / file).values())
        for name, file in ((v["name"], v["file"]) for v in report_of(finished)["variants"])
    }
    elements = sum(elements for elements, _ in count_weights(finished / "stages/03-export/model.onnx").values())
    assert counts["pruned-sparse-fp32"] == elements - round(0.6 * elements)
    small = [n for name, n in counts.items() if name.startswith("pruned-sparse-int8")]
    assert small
    assert max(small) <= counts["pruned-sparse-fp32"]


def test_unlabelled_data_is_judged_by_fidelity(quick: Quick, tmp_path: Path) -> None:
    run(quick(labels=False, max_drop=0.3))
    report = report_of(tmp_path / "run")
    assert all(v["accuracy"] is None for v in report["variants"])
    shipped = next(v for v in report["variants"] if v["name"] == report["shipped"])
    assert report["verdict"]["drop"] == pytest.approx(1 - shipped["fidelity"])
    assert "pruned-sparse-fp32" in {v["name"] for v in report["variants"]}


def test_without_data_it_still_exports_quantizes_and_says_what_was_skipped(model_file: Path, tmp_path: Path) -> None:
    options = {"input": ("1x8x8",), "out": tmp_path / "run", "benchmark": QUICK["benchmark"]}
    run(load_recipe(model_file, options))
    report = report_of(tmp_path / "run")
    names = {v["name"] for v in report["variants"]}
    assert names == {"baseline-fp32", "baseline-int8-weights"}
    assert all(v["accuracy"] is None and 0 <= v["fidelity"] <= 1 for v in report["variants"])
    assert "--data" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("kind", ["torchscript", "pt2", "onnx"])
def test_what_cannot_be_trained_enters_where_it_can(
    kind: str, finished: Path, quick: Quick, model_file: Path, tmp_path: Path
) -> None:
    module = torch.load(model_file, weights_only=False).eval()
    path = tmp_path / f"model.{kind}"
    if kind == "torchscript":
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.trace(module, torch.zeros(2, 1, 8, 8)).save(path)
    elif kind == "pt2":
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=batch), path)
    else:
        path.write_bytes((finished / "stages" / "00-baseline" / "model.onnx").read_bytes())
    run(quick(model=path))
    report = report_of(tmp_path / "run")
    expected = {v["name"]: v["accuracy"]["value"] for v in report_of(finished)["variants"]}
    assert report["variants"][0]["accuracy"]["value"] == expected["baseline-fp32"]
    assert {"baseline-fp32", "baseline-int8"} <= {v["name"] for v in report["variants"]}
    skipped = {s["stage"]: s["skipped"] for s in report["stages"]}
    assert "sparsify" in skipped["sparsify"]


def test_a_provider_that_is_absent_is_a_row_that_says_so(quick: Quick, tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the provider")
    run(quick(skip=("sparsify", "quantize"), providers=("cpu", "cuda")))
    rows = {t["provider"]: t for t in report_of(tmp_path / "run")["variants"][0]["latency"]}
    assert rows["CPUExecutionProvider"]["status"] == "ok"
    assert rows["CUDAExecutionProvider"]["status"] != "ok"
    assert rows["CUDAExecutionProvider"]["p50_ms"] is None


def test_stages_leave_the_model_they_were_given_as_it_was(model_file: Path, digits_file: Path, tmp_path: Path) -> None:
    from compress.opening import open_inputs
    from compress.sparsity import sparsify
    from compress.values import silent

    recipe = load_recipe(model_file, {"data": f"npz:{digits_file}", **QUICK})
    opened = open_inputs(recipe, silent)
    assert opened.original is not None
    before = {k: v.clone() for k, v in opened.original.module.state_dict().items()}
    sparse, record = sparsify(opened.original, recipe.sparsify, opened.context(tmp_path, recipe, silent))
    assert sparse.module is not opened.original.module
    assert record.figures["sparsity"] == pytest.approx(0.6, abs=0.001)
    assert all(torch.equal(before[k], v) for k, v in opened.original.module.state_dict().items())
    assert type(sparse.module) is type(tiny_cnn())


def test_a_run_that_is_interrupted_says_how_to_go_on(model_file: Path, digits_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compress", "pipeline", str(model_file), "--data", f"npz:{digits_file}"]
    command += ["--out", str(tmp_path / "run"), "--skip", "prune", "--set", "sparsify.min_steps=100000"]

    def hear() -> None:
        """A shell that runs the tests in the background has them, and what they start, ignore interrupts."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("sparsify"):
                os.kill(child.pid, signal.SIGINT)
                break
        rest = child.stderr.read()
        assert child.wait() == 130
    assert "--resume" in rest
    assert "Traceback" not in rest


def test_a_model_that_only_guesses_is_told_at_once(
    quick: Quick, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    torch.save(tiny_cnn(), tmp_path / "untrained.pt")
    run(quick(model=tmp_path / "untrained.pt", skip=("sparsify", "quantize")))
    assert "no better than chance with 10 classes" in caplog.text
    assert "no better than chance" in (tmp_path / "run" / "report.md").read_text()


def test_a_model_that_is_no_classifier_is_exported_and_quantized_but_not_fine_tuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 1)), tmp_path / "regressor.pt")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32))
    options = {"data": f"npz:{tmp_path / 'data.npz'}", "out": tmp_path / "run", **QUICK}
    run(load_recipe(tmp_path / "regressor.pt", options))
    report = report_of(tmp_path / "run")
    assert {"baseline-int8-dynamic", "baseline-int8-weights"} <= {v["name"] for v in report["variants"]}
    skipped = {s["stage"]: s["skipped"] for s in report["stages"]}
    assert "classifier" in skipped["sparsify"]


def test_text_ships_with_its_vocabulary(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good, bad = ["fine", "great", "lovely"], ["poor", "dull", "bad"]
    rows = [(" ".join(rng.choice(good if n % 2 else bad, 5)), n % 2) for n in range(300)]
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    tokenizer = Tokenizer.build([text for text, _ in rows], max_tokens=8)
    (tmp_path / "vocab.json").write_bytes(tokenizer.to_json())
    data = load_data(f"csv:{tmp_path / 'texts.csv'}", DataOptions(), beside=tmp_path)
    torch.manual_seed(0)
    module = LSTMClassifier(len(tokenizer), embedding=8, hidden=16)
    finetune(module, None, data.train, FineTuneConfig(batch_size=32, learning_rate=0.02), steps=60, seed=0)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    options = {
        "data": f"csv:{tmp_path / 'texts.csv'}",
        "factory": "compress.models.reference:LSTMClassifier",
        "factory_args": {"vocabulary": len(tokenizer), "embedding": 8, "hidden": 16},
        "out": tmp_path / "run",
    }
    run(load_recipe(tmp_path / "model.pt", {**QUICK, **options}))
    report = report_of(tmp_path / "run")
    assert report["variants"][0]["accuracy"]["value"] > 0.9
    assert {"pruned-sparse-int8-dynamic", "pruned-sparse-int8-weights"} <= {v["name"] for v in report["variants"]}
    assert Tokenizer.from_json((tmp_path / "run" / "vocab.json").read_bytes()) == tokenizer


def test_errors_are_of_one_family() -> None:
    assert issubclass(SparsityError, CompressError)


def test_with_objective_size_smaller_files_than_int8_are_measured_and_the_smallest_within_the_budget_ships(
    quick: Quick, tmp_path: Path
) -> None:
    report = run(quick(skip=("prune", "sparsify"), quantize={"method": "weights", "shared_steps": 0}))
    zipped = {m.variant.name: m.zip_bytes for m in report.measurements}
    assert {"baseline-int8-weights", "baseline-int4-weights", "baseline-int8-weights-rounded"} <= set(zipped)
    assert zipped["baseline-int4-weights"] < 0.75 * zipped["baseline-int8-weights"]
    assert report.shipped.zip_bytes < zipped["baseline-int8-weights"]
    assert provenance(tmp_path / "run" / "model.onnx")["variant"] == report.choice.shipped


def test_a_stage_that_the_objective_leaves_out_is_not_said_to_have_been_skipped_by_the_user(
    quick: Callable[..., Recipe],
) -> None:
    stages, opened = {stage.name: stage for stage in STAGES}, Any
    latency = quick(objective="latency")
    assert pipeline._skipped(stages["sparsify"], latency, opened) == "--objective latency leaves it out"  # type: ignore[arg-type]
    asked = quick(skip=("prune",))
    assert pipeline._skipped(stages["prune"], asked, opened) == "--skip asked for it"  # type: ignore[arg-type]
