"""Bytes and answers, on ONNX files of a single multiplication."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.data.splits import Batch, Data, Split
from compress.errors import MeasurementError, WorkspaceError
from compress.measurement import (
    Outputs,
    drop,
    fidelity,
    open_session,
    outputs_of,
    raw_bytes,
    score,
    top1,
    write_zip,
    zip_bytes,
)
from compress.measurement.accuracy import accuracy
from compress.quantization import QuantizeConfig, quantize
from compress.values import Context, InputSpec, Model, OnnxModel

FEATURES, CLASSES = 4, 4
INPUTS = (InputSpec("x", (FEATURES,)),)


def write_linear(path: Path, weight: NDArray[np.float32] | None = None, external: bool = False) -> OnnxModel:
    """y = x @ weight, with weight (FEATURES, CLASSES): the identity answers with the largest feature."""
    matrix = np.eye(FEATURES, CLASSES, dtype=np.float32) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, str(path), save_as_external_data=external, location=path.stem + ".data", size_threshold=0)
    return OnnxModel(path, INPUTS, 17)


def split(name: str, numbers: range, labelled: bool = True, wrong: int = 0) -> Split:
    """Sample n has its largest feature at n % FEATURES, which is its label, but for the first ``wrong`` ones."""

    def fetch(indices: NDArray[np.int64]) -> Batch:
        right = torch.from_numpy(indices % FEATURES)
        x = nn.functional.one_hot(right, FEATURES).float()
        labels = torch.where(torch.from_numpy(indices) < numbers.start + wrong, (right + 1) % FEATURES, right)
        return (x,), labels if labelled else None

    return Split(name, fetch, np.array(numbers), labelled)


# Bytes


def test_raw_bytes_count_external_data_too(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx", external=True)
    weights = (tmp_path / "m.data").stat().st_size
    assert weights >= 4 * FEATURES * CLASSES
    assert raw_bytes(model.path) == model.path.stat().st_size + weights


def test_the_zip_is_the_same_wherever_and_whenever_it_is_made(tmp_path: Path) -> None:
    first, second = write_linear(tmp_path / "first.onnx"), write_linear(tmp_path / "second.onnx")
    second.path.touch()
    second.path.chmod(0o600)
    write_zip(first.path, tmp_path / "a.zip")
    write_zip(second.path, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zip_bytes(first.path) == (tmp_path / "a.zip").stat().st_size


def test_the_zip_holds_the_model_and_its_external_data(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx", external=True)
    write_zip(model.path, tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert archive.namelist() == ["m.data", "model.onnx"]
        archive.extractall(tmp_path / "out")
    (out,) = open_session(tmp_path / "out" / "model.onnx", "cpu", 1).run(None, {"x": np.eye(4, dtype=np.float32)})
    assert np.array_equal(np.asarray(out), np.eye(4))


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    size = 4 * FEATURES * 1_000_000
    model = write_linear(tmp_path / "m.onnx", np.zeros((FEATURES, 1_000_000), np.float32), external=True)
    tracemalloc.start()
    zip_bytes(model.path)
    write_zip(model.path, tmp_path / "m.zip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 3
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert archive.read("m.data") == (tmp_path / "m.data").read_bytes()


def test_zeros_make_the_zip_smaller(tmp_path: Path) -> None:
    dense = np.random.default_rng(0).standard_normal((FEATURES, 500)).astype(np.float32)
    sparse = np.where(np.abs(dense) > 1.5, dense, 0).astype(np.float32)
    full, empty = write_linear(tmp_path / "d.onnx", dense), write_linear(tmp_path / "s.onnx", sparse)
    assert raw_bytes(full.path) == raw_bytes(empty.path)
    assert zip_bytes(empty.path) < 0.5 * zip_bytes(full.path)


def test_external_data_outside_the_folder_of_the_model_never_ships(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (tmp_path / "model").mkdir()
    model = write_linear(tmp_path / "model" / "m.onnx", external=True)
    proto = onnx.load(str(model.path), load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "../secret"
    model.path.write_bytes(proto.SerializeToString())
    with pytest.raises(MeasurementError, match="secret"):
        write_zip(model.path, tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_a_zip_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"m\.zip"):
        write_zip(write_linear(tmp_path / "m.onnx").path, tmp_path / "file" / "m.zip")


# Answers


def test_torch_and_onnx_give_the_same_answers_in_the_order_of_the_split(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((FEATURES, CLASSES)).astype(np.float32)
    module = nn.Linear(FEATURES, CLASSES, bias=False).eval()
    module.weight.data = torch.from_numpy(weight.T.copy())
    part = split("test", range(10, 47))
    ours = outputs_of(Model(module, INPUTS), part, batch_size=8)
    theirs = outputs_of(write_linear(tmp_path / "m.onnx", weight), part, batch_size=5)
    assert ours.values.shape == (37, CLASSES)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5)
    assert ours.labels is not None
    assert np.array_equal(ours.labels, np.arange(10, 47) % FEATURES)


def test_the_first_tensor_of_a_tuple_or_a_dict_is_what_counts() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            return {"logits": x}, x[:, :1]

    assert outputs_of(Model(Pair(), INPUTS), split("test", range(8))).values.shape == (8, FEATURES)


def test_large_samples_are_run_in_small_batches() -> None:
    sizes: list[int] = []

    class Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return x.flatten(1)[:, :2]

    def fetch(indices: NDArray[np.int64]) -> Batch:
        return (torch.zeros(len(indices), 1, 1),), None

    declared = (InputSpec("x", (1, 2**21)),)  # 8 MiB a sample
    outputs_of(Model(Watch(), declared), Split("test", fetch, np.arange(5), False), batch_size=256)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_names_its_sample(bad: float) -> None:
    class Poisoned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x[:, :1] > 0, torch.full_like(x, bad), x)

    with pytest.raises(MeasurementError, match="not finite for sample 104 of the validation split"):
        outputs_of(Model(Poisoned(), INPUTS), split("validation", range(101, 140)), batch_size=2)


def test_an_output_without_a_batch_axis_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(0, keepdim=True)

    with pytest.raises(MeasurementError, match=r"batch of 8 samples gives an output of shape \(1, 4\)"):
        outputs_of(Model(Mean(), INPUTS), split("test", range(8)))


def test_an_empty_split_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="the test split is empty"):
        outputs_of(write_linear(tmp_path / "m.onnx"), split("test", range(0)))


def test_a_single_logit_answers_by_its_sign() -> None:
    assert top1(np.array([[-0.1], [0.0], [0.1]], np.float32)).tolist() == [0, 0, 1]
    assert top1(np.array([-0.1, 0.1], np.float32)).tolist() == [0, 1]
    assert top1(np.array([[1.0, 2.0], [2.0, 1.0]], np.float32)).tolist() == [1, 0]


def test_accuracy_has_the_wilson_interval() -> None:
    values = np.eye(2, dtype=np.float32)[np.zeros(100, int)]
    found = accuracy(Outputs(values, np.array([0] * 90 + [1] * 10)))
    assert found.value == 0.9
    assert found.n == 100
    # Wilson 1927, for 90 of 100: 0.8256 to 0.9448
    assert found.low == pytest.approx(0.8256, abs=1e-4)
    assert found.high == pytest.approx(0.9448, abs=1e-4)


def test_accuracy_without_labels_and_with_too_many_is_refused() -> None:
    values = np.zeros((2, 3, 5), np.float32)
    with pytest.raises(MeasurementError, match="use fidelity"):
        accuracy(Outputs(values, None))
    with pytest.raises(MeasurementError, match="One label a sample"):
        accuracy(Outputs(values, np.zeros(2, np.int64)))


def test_fidelity_is_the_share_of_equal_answers() -> None:
    ours = Outputs(np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32), None)
    theirs = Outputs(np.array([[9, 0], [0, 9], [0, 9], [9, 0]], np.float32), None)
    assert fidelity(ours, theirs) == 0.75
    with pytest.raises(MeasurementError, match="cannot be compared"):
        fidelity(ours, Outputs(theirs.values[:2], None))


def test_a_drop_is_of_accuracy_where_there_are_labels_else_of_fidelity() -> None:
    reference = np.eye(2, dtype=np.float32)[[0, 0, 0, 0]]
    changed = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    labels = np.array([0, 0, 0, 1])
    labelled = score(Outputs(changed, labels), Outputs(reference, labels))
    assert drop(labelled, score(Outputs(reference, labels), Outputs(reference, labels))) == 0.0  # loses one, wins one
    unlabelled = score(Outputs(changed, None), Outputs(reference, None))
    assert unlabelled.accuracy is None
    assert drop(unlabelled, score(Outputs(reference, None), Outputs(reference, None))) == 0.5


def test_a_dynamically_quantized_file_is_scored_one_sample_at_a_time(tmp_path: Path) -> None:
    """Its scales are taken over a batch: one huge sample would round all others of its batch to nothing."""
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"], name="product")],
        "model",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inputs = (InputSpec("input", (4,)),)
    samples = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)
    samples[0] *= 1e6
    split = Split("test", lambda indices: ((torch.from_numpy(samples[indices]),), None), np.arange(8), labelled=False)
    data = Data("made", split, split, split, split, inputs=inputs, sha256="")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    config = QuantizeConfig(method="dynamic", per_channel="no", reduce_range="no")
    (variant,), _ = quantize(OnnxModel(path, inputs, 18), config, Context(data, tmp_path / "q", max_drop=1.0))
    values = outputs_of(variant.onnx, split).values
    np.testing.assert_allclose(values[1:], samples[1:] @ weight, atol=0.1)
