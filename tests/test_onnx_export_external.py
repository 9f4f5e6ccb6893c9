"""compress.onnx_export: a model above the limit keeps its weights beside the graph. The limit is small here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.errors import ExportError, WorkspaceError
from compress.measurement import members, raw_bytes
from compress.models.counts import count
from compress.models.onnx_file import provenance, read, stamp
from compress.onnx_export import ExportConfig, export
from compress.onnx_export import weights as weights_module
from compress.values import Context, InputSpec, Model, OnnxModel, StageRecord

VECTOR = (InputSpec("x", (7, 64)),)
LARGE = ExportConfig(external_above_bytes=100_000)


class Wide(nn.Module):
    """(N, 7, 64) to (N, 10): its matrices are turned by the exporter, one of them is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 600)
        self.second = nn.Linear(600, 64)
        self.norm = nn.BatchNorm1d(10)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return self.norm(self.head(self.second(self.first(x).relu()).mean(1)))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(Wide().eval(), VECTOR)


@pytest.fixture(scope="module")
def made(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, StageRecord]:
    return export(model, LARGE, Context(data=None, directory=tmp_path_factory.mktemp("large")))


def test_weights_lie_beside_a_small_graph(made: tuple[OnnxModel, StageRecord]) -> None:
    path = made[0].path
    assert {file.name for file in path.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert members(path) == {"model.onnx": path, "model.onnx.data": path.parent / "model.onnx.data"}
    assert path.stat().st_size < 10_000 < 2 * 4 * 64 * 600 <= raw_bytes(path) == made[1].figures["bytes"]
    assert made[1].figures["external"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_file_gives_the_results_of_torch(model: Model, made: tuple[OnnxModel, StageRecord], batch: int) -> None:
    x = torch.randn(batch, 7, 64, generator=torch.Generator().manual_seed(batch))
    session = onnxruntime.InferenceSession(made[0].path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model.module(x).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-5)


def test_every_parameter_is_counted(model: Model, made: tuple[OnnxModel, StageRecord]) -> None:
    norm = sum(p.numel() for p in model.module.get_submodule("norm").parameters())
    assert count(made[0].path).parameters == sum(p.numel() for p in model.module.parameters()) - norm


def test_no_path_gets_into_the_graph(made: tuple[OnnxModel, StageRecord]) -> None:
    content = made[0].path.read_bytes()
    for word in (str(made[0].path.parent), str(Path.cwd()), "/tmp", ".py", "pkg.torch", ".export-"):
        assert word.encode() not in content


def test_two_exports_are_equal_byte_by_byte(model: Model, made: tuple[OnnxModel, StageRecord], tmp_path: Path) -> None:
    again = export(model, LARGE, Context(data=None, directory=tmp_path))[0].path
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / name).read_bytes() == (made[0].path.parent / name).read_bytes()
    assert again.parent == tmp_path


def test_the_graph_is_read_without_its_weights(made: tuple[OnnxModel, StageRecord], tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(made[0].path.read_bytes())  # its weights are not there
    tensors = read(alone, weights=False).graph.initializer
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)


def test_provenance_is_stamped_without_touching_the_weights(
    made: tuple[OnnxModel, StageRecord], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(stamp(made[0].path, {"source_sha256": "ab"}))
    (tmp_path / "model.onnx.data").write_bytes(made[0].path.with_name("model.onnx.data").read_bytes())
    assert provenance(tmp_path / "model.onnx") == {"source_sha256": "ab"}
    assert count(tmp_path / "model.onnx") == count(made[0].path)


def test_nothing_is_left_behind_when_torch_disagrees(tmp_path: Path) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(200, 200))
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x @ self.weight + self.calls

    with pytest.raises(ExportError, match="differs from torch"):
        export(Model(Counter().eval(), (InputSpec("x", (200,)),)), LARGE, Context(data=None, directory=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_such(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module.os, "fsync", full)
    with pytest.raises(WorkspaceError, match=r"model\.onnx\.data: No space left on device"):
        export(model, LARGE, Context(data=None, directory=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_torchscript_model_keeps_its_weights_beside_the_graph_too(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(200, 300), nn.BatchNorm1d(300), nn.ReLU()).eval()
    module = torch.jit.script(net)
    made, record = export(Model(module, (InputSpec("x", (200,)),)), LARGE, Context(data=None, directory=tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (record.figures["exporter"], record.figures["batch_norms_left"]) == ("torchscript", 0)
    assert str(tmp_path).encode() not in made.path.read_bytes()
