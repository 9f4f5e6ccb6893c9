"""The side-by-side of quantizers: the same inputs for all, failures that stay in their row, files made once."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import benchmarks.train
from benchmarks import quantization
from benchmarks.peers import quantizers
from benchmarks.peers.calibration import feeds
from benchmarks.peers.environments import interpreter
from benchmarks.peers.measured import FLOAT, Row, TestSet, markdown, measure, readable
from benchmarks.peers.pooling import relu_first
from benchmarks.peers.quantizers import OURS, PEERS, Made, Quantizer, made_before, make_peer, peers_of, run
from benchmarks.quantization import LABELS, MODELS, data_flags, data_of, identity, make_all, write_inputs
from compress.cli.options import data_options
from compress.data import DataOptions, load_data

FOLDER = Path(quantizers.__file__).parent
SAMPLES = 40


def linear(seed: int, ir_version: int = 10) -> onnx.ModelProto:
    """A linear classifier of (N, 8) with 4 classes."""
    weight = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=ir_version)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "float.onnx"
    onnx.save(linear(seed=0), path)
    return path


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.npz"
    np.savez(path, x=inputs(seed=1))
    return path


def inputs(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(SAMPLES, 8)).astype(np.float32)


def samples() -> TestSet:
    """Test samples that the classifier of seed 0 answers rightly, but for the first."""
    x = inputs(seed=2)
    labels = (x @ numpy_helper.to_array(linear(seed=0).graph.initializer[0])).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 4
    return TestSet({"x": x}, labels)


@pytest.mark.parametrize("name", [name for name, trained in MODELS.items() if not trained.text])
def test_each_model_is_given_the_data_that_it_was_trained_on(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class EnoughError(Exception):
        pass

    def asked(spec: str, options: DataOptions) -> None:
        assert (spec, options) == (MODELS[name].data, MODELS[name].options)
        raise EnoughError

    monkeypatch.setattr(benchmarks.train, "load_data", asked)
    with pytest.raises(EnoughError):
        benchmarks.train.MODELS[name](tmp_path, 0)


@pytest.mark.parametrize("name", MODELS)
def test_the_command_line_is_told_every_option_of_the_data(name: str, tmp_path: Path) -> None:
    flags = data_flags(MODELS[name], tmp_path, calibration=64)
    known = {flag for option in _click_options() for flag in option.opts}
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    spec, options = data_of(MODELS[name], tmp_path, calibration=64)
    assert given.pop("--data") == spec
    assert given.pop("--set") == "preprocess.calibration=64"
    assert set(given) <= known
    told = {flag.removeprefix("--").replace("-", "_"): value for flag, value in given.items()}
    names = tuple(vars(DataOptions()))
    assert told == {field: str(getattr(options, field)) for field in options.given(names) if field != "calibration"}


def _click_options() -> list[Any]:
    @data_options()
    def command() -> None: ...

    return list(command.__click_params__)


def test_all_quantizers_are_given_the_calibration_split_in_its_order(tmp_path: Path) -> None:
    data = load_data("digits", DataOptions(calibration=24))
    calibration, test = tmp_path / "calibration.npz", tmp_path / "test.npz"
    write_inputs(data, calibration, test)
    columns, _ = data.calibration.fetch(data.calibration.indices)
    stored = feeds(calibration)
    assert [sample.keys() for sample in stored] == [{data.inputs[0].name}] * 24
    assert np.array_equal(np.concatenate([sample[data.inputs[0].name] for sample in stored]), columns[0].numpy())
    kept = quantization.read_test(test)
    assert len(kept.labels) == len(data.test)
    assert LABELS not in kept.inputs


def test_other_calibration_inputs_are_another_identity_and_the_same_ones_are_not(model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.npz" for number in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        np.savez(path, x=inputs(seed))
    first, again, other = (identity(model, path) for path in paths)
    assert first == again
    assert first != other


def test_every_peer_has_a_script_and_pinned_requirements_and_a_name_of_its_own() -> None:
    assert len({peer.name for peer in PEERS} | {OURS, FLOAT}) == len(PEERS) + 2
    for peer in PEERS:
        assert (FOLDER / f"{peer.script}.py").exists()
        assert set(peer.models) <= set(MODELS)
        script = (FOLDER / f"{peer.script}.py").read_text()
        assert all(f'"{flag.removeprefix("--")}"' in script for flag in peer.flags)
        if peer.environment is not None:
            pins = (FOLDER / f"requirements-{peer.environment}.txt").read_text().split()
            assert all("==" in pin for pin in pins)


def test_dynamic_quantization_is_tried_where_its_documentation_recommends_it() -> None:
    assert "ort-dynamic" not in [peer.name for peer in peers_of("cnn")]
    assert {"ort-dynamic", "inc-dynamic", "onc-dynamic"} <= {peer.name for peer in peers_of("lstm")}


def test_a_relu_moves_before_its_pooling_and_no_output_changes() -> None:
    images = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph(
        [
            helper.make_node("MaxPool", ["x"], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["pooled"], ["y"]),
        ],
        "pooling",
        images[:1],
        images[1:],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    expected = ReferenceEvaluator(before).run(None, {"x": x})[0]
    after = relu_first(before)
    assert [node.op_type for node in after.graph.node] == ["Relu", "MaxPool"]
    assert np.array_equal(ReferenceEvaluator(after).run(None, {"x": x})[0], expected)


@pytest.mark.slow  # it starts a Python that imports onnxruntime's quantizer
def test_quantize_static_runs_in_a_process_of_its_own(model: Path, calibration: Path, tmp_path: Path) -> None:
    peer = next(peer for peer in PEERS if peer.name == "ort-static-u8s8")
    made = make_peer(peer, model, calibration, tmp_path / peer.name, "source", tmp_path / "environments")
    assert (made.status, made.file) == ("ok", "int8.onnx")
    assert set(made.versions) == {"onnxruntime", "onnx"}
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / peer.name / "int8.onnx").graph.initializer}
    assert {TensorProto.INT8, TensorProto.UINT8} <= kinds
    assert made_before(tmp_path / peer.name, "source") == made
    assert made_before(tmp_path / peer.name, "another source") is None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.stderr.write('Traceback\\nValueError: no scale\\n'); sys.exit(1)", "ValueError: no scale"),
        ("import sys; sys.exit('a.b.InvalidArgument: 2')", "a.b.InvalidArgument: 2"),
        ("import sys; sys.exit(7)", "ended with status 7"),
        ("pass", "wrote no int8.onnx, but no ONNX file"),
    ],
)
def test_a_quantizer_that_fails_says_why_in_its_row(code: str, status: str, tmp_path: Path, model: Path) -> None:
    made = run([sys.executable, "-c", code], Made("peer", "settings", "source"), tmp_path / "peer")
    assert (made.status, made.file) == (status, None)
    rows = measure(model, [made], {}, samples(), seconds=0.01, launches=1)
    assert [row.made.name for row in rows] == [FLOAT, "peer"]
    assert status in markdown("linear", rows)


def test_our_run_that_ships_the_float_file_is_measured_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / OURS
    code = f"from pathlib import Path; p = Path({str(folder / 'q')!r}); p.mkdir(); (p / 'model.onnx').write_text('');"
    command = [sys.executable, "-c", code + "import sys; sys.exit(3)"]
    assert run(command, Made(OURS, "", "source"), folder, "q/model.onnx").status == "ended with status 3"
    (folder / "q" / "model.onnx").unlink()
    (folder / "q").rmdir()
    made = run(command, Made(OURS, "", "source", versions={"onnx": "1"}), folder, "q/model.onnx", fine=(0, 3))
    assert (made.status, made.file, made.versions) == ("ok", "q/model.onnx", {"onnx": "1"})


def test_an_environment_that_cannot_be_made_is_a_status(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.peers.environments.sys.executable", "/bin/false")
    peer = Quantizer("peer", "settings", "quantize_nncf", environment="nncf")
    made = make_peer(peer, model, calibration, tmp_path / "peer", "source", tmp_path)
    assert made.status.startswith("no environment: ")


def test_an_environment_made_from_these_requirements_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("it was made again"))
    (tmp_path / "nncf").mkdir()
    (tmp_path / "nncf" / "requirements.txt").write_text((FOLDER / "requirements-nncf.txt").read_text())
    assert interpreter("nncf", tmp_path) == tmp_path / "nncf" / "bin" / "python"


def test_an_environment_that_two_want_at_a_time_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def slow(command: list[str], **options: object) -> None:
        made.append(command[2])
        (tmp_path / "nncf").mkdir(exist_ok=True)
        time.sleep(0.05)

    monkeypatch.setattr("benchmarks.peers.environments.subprocess.run", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: interpreter("nncf", tmp_path), range(2)))
    assert found == [tmp_path / "nncf" / "bin" / "python"] * 2
    assert made == ["venv", "pip"]


def test_all_files_of_a_model_are_scored_and_timed_beside_the_float_one(model: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.onnx", tmp_path / "other.onnx"
    onnx.save(linear(seed=0), same)
    onnx.save(linear(seed=5), other)
    made = [Made(OURS, "", "source", file="same.onnx"), Made("peer", "", "source", file="other.onnx")]
    dense, ours, peer = measure(model, made, {OURS: same, "peer": other}, samples(), seconds=0.01, launches=1)
    assert dense.accuracy is not None
    assert dense.accuracy.value == (SAMPLES - 1) / SAMPLES
    assert ours.against_float is not None
    assert (ours.fidelity, ours.against_float.p, ours.against_ours) == (1.0, 1.0, None)
    assert peer.against_ours is not None
    assert peer.against_ours.p < 0.001  # another classifier: chance
    assert peer.ours_speedup is not None
    assert peer.ours_speedup.low <= peer.ours_speedup.value <= peer.ours_speedup.high
    assert all(row.latency is not None and row.latency.samples >= 50 for row in (dense, ours, peer))
    json.dumps([row.to_dict() for row in (dense, ours, peer)])  # plain values


def test_a_file_whose_scales_come_from_the_batch_is_scored_one_sample_at_a_time(model: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, tmp_path / "dynamic.onnx")
    made = Made("peer", "", "source", file="dynamic.onnx")
    dense, peer = measure(model, [made], {"peer": tmp_path / "dynamic.onnx"}, samples(), seconds=0.01, launches=1)
    assert (dense.scored_batch, peer.scored_batch) == (256, 1)


def test_a_file_that_onnxruntime_refuses_is_a_status_and_the_others_are_measured(model: Path, tmp_path: Path) -> None:
    broken = linear(seed=0)
    broken.graph.node[0].input[1] = "nothing"
    onnx.save(broken, tmp_path / "broken.onnx")
    made = Made("peer", "", "source", file="broken.onnx")
    dense, peer = measure(model, [made], {"peer": tmp_path / "broken.onnx"}, samples(), seconds=0.01, launches=1)
    assert dense.latency is not None
    assert peer.latency is None
    assert "broken.onnx" in peer.made.status
    assert str(tmp_path) not in peer.made.status  # it would tell of the machine that the file was made on


def test_a_newer_ir_version_is_stamped_down_and_told(tmp_path: Path) -> None:
    onnx.save(linear(seed=0, ir_version=14), tmp_path / "new.onnx")
    path, note = readable(tmp_path / "new.onnx")
    assert onnx.load(path).ir_version == 10
    assert note == "IR version 14, stamped 10 here"
    assert onnx.load(tmp_path / "new.onnx").ir_version == 14  # what the peer wrote is kept


def test_files_that_are_there_are_not_made_again_but_where_asked(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(peer: Quantizer, model: Path, calibration: Path, folder: Path, source: str, environments: Path) -> Made:
        made.append(peer.name)
        return quantizers.keep(Made(peer.name, peer.settings, source), folder)

    def ours(name: str, source: quantization.Source, checkpoint: Path, folder: Path, count: int, file: str) -> Made:
        made.append(OURS)
        return quantizers.keep(Made(OURS, "", source.identity), folder)

    monkeypatch.setattr(quantization, "make_peer", make)
    monkeypatch.setattr(quantization, "make_ours", ours)
    source = quantization.Source(model, calibration, calibration, "source")
    options = argparse.Namespace(
        only_measure=False, again=[], checkpoints=tmp_path, peers=tmp_path, calibration=SAMPLES, ours="model.onnx"
    )
    everything = [OURS, *(peer.name for peer in peers_of("cnn"))]
    for again, only_measure, expected in (
        ([], True, []),
        ([], False, everything),
        ([], False, []),
        (["nncf"], False, ["nncf"]),
        (["nncf"], True, []),
    ):
        made.clear()
        options.again, options.only_measure = again, only_measure
        found = make_all("cnn", source, tmp_path / "work", options)
        assert made == expected
        assert [one.name for one in found] == (
            [] if expected == [] and not (tmp_path / "work").exists() else everything
        )


def test_the_table_has_a_row_for_each_file_and_tells_n(model: Path) -> None:
    made = Made("peer", "settings", "source", "MemoryError: 16 GB")
    rows = measure(model, [made], {}, samples(), seconds=0.01, launches=1)
    table = markdown("linear", rows)
    assert f"n = {SAMPLES}" in table
    assert "| float: compress export, float32 | 0.9750" in table
    assert "| peer: settings | MemoryError: 16 GB | –" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert isinstance(rows[0], Row)
