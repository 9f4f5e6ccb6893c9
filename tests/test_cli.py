"""The command: exit statuses, one or two lines for every bad input, no traceback unless asked for."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.cli.benchmark import _names
from compress.errors import CompressError, WorkspaceError
from compress.recipe import Recipe
from tests.conftest import Call, Outcome, tiny_cnn

FAST = (
    *("--set", "benchmark.seconds=0.05", "--set", "benchmark.launches=1", "--set", "preprocess.calibration=64"),
    *("--set", "quantize.compact=no", "--set", "quantize.types=u8s8"),  # the others have tests of their own
)


@pytest.fixture
def call(compress: Call) -> Call:
    return compress


def check_refused(outcome: Outcome, *words: str) -> None:
    """An error that names what the user needs, in one or two lines, with exit status 1."""
    assert outcome.status == 1, outcome
    assert "Traceback" not in outcome.err
    message = outcome.err[outcome.err.index("Error: ") :].strip()
    assert len(message.splitlines()) <= 2, message
    for word in words:
        assert word in message, message


def test_help_has_examples_and_every_command(call: Call) -> None:
    outcome = call("--help")
    assert outcome.status == 0
    for name in ("pipeline", "sparsify", "export", "quantize", "benchmark", "demo", "doctor"):
        assert name in outcome.out
        assert "Example" in call(name, "--help").out
    assert call().out == outcome.out


def test_usage_errors_have_status_2_and_suggest_the_nearest_option(call: Call) -> None:
    outcome = call("pipeline", "model.pt", "--objectiv", "size")
    assert outcome.status == 2
    assert "--objective" in outcome.err
    assert call("pipelin").status == 2


def broken(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def pickled(module: object) -> bytes:
    content = io.BytesIO()
    torch.save(module, content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("empty",)),
        (pickled(nn.Linear(64, 10))[:700], ("cut short",)),
        (b"<!DOCTYPE html><html><body>404</body></html>", ("HTML",)),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", ("NumPy",)),
    ],
    ids=["empty", "truncated", "html", "npy"],
)
def test_a_file_that_is_no_model_is_refused_with_what_it_is(
    content: bytes, words: tuple[str, ...], call: Call, tmp_path: Path
) -> None:
    path = broken(tmp_path, "model.pt", content)
    check_refused(call("pipeline", path, "--data", "digits"), "model.pt", *words)
    assert not (tmp_path / "compressed").exists()


def test_a_missing_file_is_refused(call: Call) -> None:
    check_refused(call("pipeline", "none.pt", "--data", "digits"), "none.pt")


def test_a_state_dict_without_a_factory_is_refused_with_the_option(call: Call, tmp_path: Path) -> None:
    path = broken(tmp_path, "weights.pt", pickled(tiny_cnn().state_dict()))
    check_refused(call("pipeline", path, "--data", "digits"), "weights.pt", "--factory", "0.weight")


def test_a_factory_that_does_not_fit_is_refused_with_the_keys(call: Call, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef Net(): return nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(3, 3))\n"
    )
    path = broken(tmp_path, "weights.pt", pickled(tiny_cnn().state_dict()))
    check_refused(
        call("pipeline", path, "--data", "digits", "--factory", "./net.py:Net"),
        "missing 2: 2.weight",
        "unexpected",
        "1.weight",
    )


class Mine(nn.Linear):
    """A class of the user's."""


def test_a_class_that_is_not_to_be_trusted_is_refused_with_the_option(call: Call, tmp_path: Path) -> None:
    path = broken(tmp_path, "mine.pt", pickled(Mine(64, 10)))
    check_refused(call("pipeline", path, "--data", "digits"), "tests.test_cli.Mine", "--trust")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, ("touch it-ran",)


@pytest.mark.parametrize("form", ["zip", "bare"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(form: str, call: Call, tmp_path: Path) -> None:
    content = pickled(Evil()) if form == "zip" else pickle.dumps(Evil())
    check_refused(call("pipeline", broken(tmp_path, "evil.pt", content), "--data", "digits"), "evil.pt")
    assert not (tmp_path / "it-ran").exists()


def save_npz(tmp_path: Path, x: np.ndarray, y: np.ndarray | None) -> str:
    np.savez(tmp_path / "data.npz", x=x, **({} if y is None else {"y": y}))
    return f"npz:{tmp_path / 'data.npz'}"


def test_channels_last_data_is_recognised(call: Call, tmp_path: Path, model_file: Path) -> None:
    data = save_npz(tmp_path, np.zeros((60, 8, 8, 1), np.float32), np.arange(60) % 10)
    check_refused(call("pipeline", model_file, "--data", data), "(8, 8, 1)", "transpose(0, 3, 1, 2)")


def test_channels_last_is_recognised_in_sequences_too(call: Call, tmp_path: Path) -> None:
    path = broken(tmp_path, "model.pt", pickled(nn.Sequential(nn.Conv1d(3, 8, 5), nn.Flatten(), nn.Linear(776, 2))))
    check_refused(call("export", path, "--input", "101x3"), "wants 3 input channels and got 101", "transpose")
    assert not (tmp_path / "model.onnx").exists()


def test_a_wrong_input_size_is_refused_with_both_sizes(call: Call, tmp_path: Path, model_file: Path) -> None:
    data = save_npz(tmp_path, np.zeros((60, 1, 12, 12), np.float32), np.arange(60) % 10)
    check_refused(call("pipeline", model_file, "--data", data), "128")


def test_nan_in_the_weights_is_refused_with_the_tensor(call: Call, tmp_path: Path) -> None:
    module = tiny_cnn()
    with torch.no_grad():
        module[6].weight[3, 5] = float("nan")
    check_refused(
        call("pipeline", broken(tmp_path, "nan.pt", pickled(module)), "--data", "digits"), "nan.pt", "6.weight"
    )


def test_nan_in_the_data_is_refused_with_the_sample(call: Call, tmp_path: Path, model_file: Path) -> None:
    x = np.zeros((60, 1, 8, 8), np.float32)
    x[17] = np.nan
    check_refused(call("pipeline", model_file, "--data", save_npz(tmp_path, x, np.arange(60) % 10)), "17", "NaN")


def test_empty_data_is_refused(call: Call, tmp_path: Path, model_file: Path) -> None:
    data = save_npz(tmp_path, np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64))
    check_refused(call("pipeline", model_file, "--data", data), "data.npz")


def test_labels_outside_the_classes_are_refused(call: Call, tmp_path: Path, model_file: Path) -> None:
    data = save_npz(tmp_path, np.zeros((60, 1, 8, 8), np.float32), np.arange(60) % 12)
    check_refused(call("pipeline", model_file, "--data", data), "11", "10")


@pytest.mark.parametrize("command", ["sparsify", "reduce", "prune", "curve", "train"])
def test_one_number_a_sample_is_no_class_and_is_refused(command: str, call: Call, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), tmp_path / "model.pt")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((60, 1, 8, 8), np.float32))
    result = call(
        command, str(tmp_path / "model.pt"), "--data", f"npz:{tmp_path / 'x.npz'}", "--out", str(tmp_path / "o")
    )
    check_refused(result, "classifier", "compress pipeline")
    assert not (tmp_path / "o").exists()


def test_a_model_whose_control_flow_depends_on_data_is_refused(call: Call, tmp_path: Path, digits_file: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n        x = self.fc(x.flatten(1))\n"
        "        return x * 2 if x.sum() > 0 else x\n"
    )
    path = broken(tmp_path, "weights.pt", pickled(nn.Sequential()))
    torch.manual_seed(0)
    torch.save({"fc.weight": torch.randn(10, 64), "fc.bias": torch.zeros(10)}, path)
    check_refused(call("pipeline", path, "--factory", "./net.py:Net", "--data", f"npz:{digits_file}", *FAST), "depend")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_float_types_are_cast_and_it_is_said(
    dtype: torch.dtype, call: Call, tmp_path: Path, model_file: Path, digits_file: Path
) -> None:
    module = torch.load(model_file, weights_only=False).to(dtype)
    path = broken(tmp_path, "other.pt", pickled(module))
    outcome = call("export", path, "--data", f"npz:{digits_file}", "--out", "model.onnx")
    assert outcome.status == 0, outcome
    assert str(dtype).removeprefix("torch.") in outcome.out
    assert "float32" in outcome.out


def test_no_space_left_is_told_and_leaves_no_half_file(
    call: Call, model_file: Path, digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    check_refused(call("pipeline", model_file, "--data", f"npz:{digits_file}", "--out", "run"), "No space left")
    assert [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == []


def test_an_out_that_cannot_be_written_is_told(call: Call, model_file: Path, digits_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_refused(call("pipeline", model_file, "--data", f"npz:{digits_file}", "--out", "file/run"), "file/run")


def test_debug_shows_the_traceback(call: Call, tmp_path: Path) -> None:
    path = broken(tmp_path, "model.pt", b"")
    assert "Traceback" in call("pipeline", path, "--data", "digits", "--debug").err


def test_a_defect_is_told_as_one(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*arguments: object, **options: object) -> None:
        raise KeyError("inner")

    monkeypatch.setattr("compress.recipe.load_recipe", defect)
    check_refused(call("pipeline", "model.pt"), "KeyError", "defect of compress")


def test_the_bare_command_works_with_a_compress_toml_beside_the_model(
    call: Call, tmp_path: Path, model_file: Path, digits_file: Path
) -> None:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "model.pt").write_bytes(model_file.read_bytes())
    (folder / "compress.toml").write_text(
        f'data = "npz:{digits_file}"\nmax-drop = 0.2\nskip = ["prune", "sparsify"]\nobjective = "size"\n'
        "[benchmark]\nseconds = 0.05\nlaunches = 1\nsensitivity_seconds = 0\n[preprocess]\ncalibration = 64\n"
        '[quantize]\ncompact = "no"\ntypes = "u8s8"\n'
    )
    outcome = call("pipeline", folder / "model.pt")
    assert outcome.status == 0, outcome
    assert "baseline-int8" in outcome.out
    assert "\x1b[" not in outcome.out + outcome.err
    assert json.loads((tmp_path / "compressed" / "report.json").read_text())["verdict"]["max_drop"] == 0.2


def test_status_3_where_no_variant_keeps_the_accuracy(call: Call, tmp_path: Path, digits_file: Path) -> None:
    torch.manual_seed(0)
    path = broken(tmp_path, "model.pt", pickled(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))
    outcome = call(
        "sparsify", path, "--data", f"npz:{digits_file}", "--no-labels", "--max-drop", "0", "--sparsity", "0.98",
        "--set", "sparsify.rounds=1", "--set", "sparsify.min_steps=3", "--epochs", "0.1", *FAST,
    )  # fmt: skip
    assert outcome.status == 3, outcome
    assert not (tmp_path / "sparse.safetensors").exists()


def test_the_stages_work_alone(call: Call, tmp_path: Path, model_file: Path, digits_file: Path) -> None:
    data = ("--data", f"npz:{digits_file}")
    outcome = call(
        "sparsify", model_file, *data, "--sparsity", "0.5", "--max-drop", "0.2",
        "--set", "sparsify.rounds=1", "--set", "sparsify.min_steps=60", "--epochs", "1",
    )  # fmt: skip
    assert outcome.status == 0, outcome
    assert "50.0" in outcome.out
    factory = ("--factory", "tests.conftest:tiny_cnn")
    outcome = call("export", "sparse.safetensors", *factory, *data, "--out", "sparse.onnx")
    assert outcome.status == 0, outcome
    outcome = call("quantize", "sparse.onnx", *data, "--out", "int8", *FAST[2:])
    assert outcome.status == 0, outcome
    assert (tmp_path / "int8" / "int8.onnx").is_file()
    before = sorted(tmp_path.rglob("*"))
    outcome = call("benchmark", "sparse.onnx", "int8/int8.onnx", *data, *FAST)
    assert outcome.status == 0, outcome
    assert all(word in outcome.out for word in ("p50", "peak memory", "of the limit"))
    outcome = call("benchmark", "sparse.onnx", "int8/int8.onnx", *data, "--json", *FAST)
    measured = json.loads(outcome.out)
    for measurement in measured["measurements"]:
        timing = measurement["latency"][0]
        assert len(timing["samples_ms"]) == timing["samples"] >= 50
    assert [v["name"] for v in measured["variants"]] == ["sparse", "int8"]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_exists_is_not_replaced_unasked(call: Call, tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    outcome = call("export", model_file, "--input", "1x8x8")
    assert outcome.status == 2
    assert "--overwrite" in outcome.err
    assert (tmp_path / "model.onnx").read_text() == "mine"
    assert call("export", model_file, "--input", "1x8x8", "--overwrite").status == 0


def test_an_output_of_the_wrong_kind_is_refused_before_any_work(call: Call, tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for arguments, words in (
        (("export", model_file, "--input", "1x8x8", "--out", "folder"), "is a directory, and a file is written"),
        (("prune", model_file, "--input", "1x8x8", "--out", "file"), "is a file, and a directory is written"),
    ):
        outcome = call(*arguments, "--overwrite")
        assert outcome.status == 2
        assert words in outcome.err
    assert (tmp_path / "file").read_text() == "mine"


def test_safetensors_load_with_a_factory(call: Call, tmp_path: Path) -> None:
    save_file({"0.weight": torch.randn(10, 64), "0.bias": torch.zeros(10)}, tmp_path / "w.safetensors")
    (tmp_path / "net.py").write_text("from torch import nn\ndef Net(out): return nn.Sequential(nn.Linear(64, out))\n")
    outcome = call(
        "export", "w.safetensors", "--factory", "./net.py:Net", "--factory-args", '{"out": 10}', "--input", "64"
    )
    assert outcome.status == 0, outcome


def test_the_doctor_tells_versions_cpu_and_providers(call: Call) -> None:
    outcome = call("doctor")
    assert outcome.status == 0
    for word in ("torch", torch.__version__, "onnxruntime", "isa"):
        assert word in outcome.out
    assert re.search(r"^  cpu +runs", outcome.out, re.MULTILINE)


def test_the_demo_reaches_its_figures(call: Call, tmp_path: Path) -> None:
    outcome = call("demo", "--out", "demo")
    assert outcome.status == 0, outcome
    report = json.loads((tmp_path / "demo" / "compressed" / "report.json").read_text())
    assert report["verdict"]["passed"]
    assert report["verdict"]["drop"] <= 0.01
    assert report["verdict"]["zip_ratio"] >= 8
    assert report["shipped"] in outcome.out


def test_the_demo_runs_what_it_prints(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed command, parsed by `compress pipeline`, makes the recipe that ran; names may hold spaces."""
    seen: list[tuple[Recipe, str]] = []

    def stop(recipe: Recipe, progress: object, command: str) -> None:
        seen.append((recipe, command))
        raise CompressError("stopped")

    monkeypatch.setattr("compress.pipeline.run", stop)
    monkeypatch.setattr("compress.demo.train_digits", lambda path, seed, progress: path)
    assert call("demo", "--out", "my demo", "--seed", "3").err == "Error: stopped\n"
    ((ran, command),) = seen
    assert call(*shlex.split(command)[1:], "--overwrite").err == "Error: stopped\n"
    assert seen[1][0] == ran
    assert ran.benchmark.threads == (1,)


@pytest.mark.parametrize(("command", "kept"), [("pipeline", True), ("prune", False)])
def test_an_interrupt_says_what_is_kept_and_leaves_with_130(
    command: str, kept: bool, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.recipe.load_recipe", interrupt)
    outcome = call(command, "model.pt")
    assert outcome.status == 130
    assert outcome.err.strip().startswith("Interrupted.")
    assert ("--resume" in outcome.err) == kept


def test_a_tracker_that_refuses_leaves_json_output_empty(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise WorkspaceError("MLflow refused")

    monkeypatch.setattr("compress.pipeline.run", lambda *arguments: None)
    monkeypatch.setattr("compress.experiments.log_run", refuse)
    outcome = call("pipeline", "model.pt", "--data", "digits", "--tensorboard", "logs", "--json")
    assert (outcome.status, outcome.out) == (1, "")
    assert "MLflow refused" in outcome.err


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("a/m.onnx", "a/m.onnx"), ("1 a/m.onnx", "2 a/m.onnx")),  # an A/A run
        (("a/m.onnx", "b/m.onnx"), ("a/m.onnx", "b/m.onnx")),
        (("a/m.onnx", "b/int8.onnx"), ("m", "int8")),
    ],
)
def test_files_that_are_measured_side_by_side_have_names_of_their_own(
    files: tuple[str, ...], names: tuple[str, ...]
) -> None:
    assert tuple(_names(tuple(map(Path, files)))) == names
