"""compress.onnx_export: the ONNX file gives what torch gives, or there is an ExportError."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.data.splits import Data, Split
from compress.errors import DataError, ExportError, RecipeError
from compress.models.counts import count
from compress.onnx_export import ExportConfig, export
from compress.values import Context, InputSpec, Model, OnnxModel

VECTOR = (InputSpec("input", (4,)),)
IMAGE = (InputSpec("input", (1, 8, 8)),)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 3 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.max_pool2d(self.norm(self.conv(x)), 2))
        return functional.log_softmax(self.fc(x.view(-1, 4 * 3 * 3)), dim=1)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return self.fc(-x)


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"sum": a + b, "difference": a - b}


def _cnn() -> Model:
    torch.manual_seed(0)
    return Model(Cnn().eval(), IMAGE)


def _export(model: Model, folder: Path, config: ExportConfig | None = None, data: Data | None = None) -> OnnxModel:
    return export(model, config or ExportConfig(), Context(data=data, directory=folder))[0]


def _outputs(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


@pytest.fixture(scope="module")
def cnn_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(_cnn(), tmp_path_factory.mktemp("cnn")).path


@pytest.mark.parametrize("batch", [1, 2, 5, 17])
def test_any_batch_size_gives_the_results_of_torch(cnn_file: Path, batch: int) -> None:
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = _cnn().module(x).numpy()
    np.testing.assert_allclose(_outputs(cnn_file, x)[0], expected, atol=1e-5)


def test_the_file_names_its_batch_axis_and_carries_the_versions_asked_for(tmp_path: Path) -> None:
    made = _export(_cnn(), tmp_path, ExportConfig(opset=19, ir_version=9))
    proto = onnx.load(str(made.path))
    assert (proto.ir_version, proto.opset_import[0].version, made.opset) == (9, 19, 19)
    dims = [value.type.tensor_type.shape.dim[0].dim_param for value in (*proto.graph.input, *proto.graph.output)]
    assert dims == ["batch", "batch"]
    assert [proto.graph.input[0].name, proto.graph.output[0].name] == ["input", "output"]


def test_the_file_holds_no_path_trace_or_docstring(cnn_file: Path) -> None:
    content = cnn_file.read_bytes()
    for word in (b"pkg.torch", b".py", b"forward", b"namespace", str(Path.cwd()).encode()):
        assert word not in content


def test_two_exports_are_equal_byte_by_byte(cnn_file: Path, tmp_path: Path) -> None:
    assert _export(_cnn(), tmp_path).path.read_bytes() == cnn_file.read_bytes()


def test_batch_norm_is_folded_and_all_weights_are_kept(cnn_file: Path) -> None:
    kinds = {node.op_type for node in onnx.load(str(cnn_file)).graph.node}
    assert kinds.isdisjoint({"BatchNormalization", "Dropout"})
    assert count(cnn_file).parameters == (4 * 9 + 4) + (36 * 3 + 3)


def test_zero_weights_stay_zero(tmp_path: Path) -> None:
    model = _cnn()
    conv = model.module.get_submodule("conv")
    with torch.no_grad():
        conv.weight[:, :, 0] = 0  # type: ignore[index, operator]
    weights = onnx.load(str(_export(model, tmp_path).path)).graph.initializer
    array = next(onnx.numpy_helper.to_array(tensor) for tensor in weights if tensor.name == "conv.weight")
    assert (array[:, :, 0] == 0).all()
    assert (array[:, :, 1:] != 0).all()


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    model = _cnn()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    _export(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert not model.module.training


def test_the_console_stays_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _export(_cnn(), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not caught


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    inputs = (InputSpec("left", (3,)), InputSpec("right", (3,)))
    made = _export(Model(Two(), inputs, "other"), tmp_path)
    a, b = torch.ones(2, 3), torch.full((2, 3), 4.0)
    total, difference = _outputs(made.path, a, b)
    assert total[0, 0] == 5
    assert difference[0, 0] == -3
    names = [value.name for value in onnx.load(str(made.path)).graph.output]
    assert names == ["output", "output_1"]


def test_inputs_given_as_star_arguments_are_exported(tmp_path: Path) -> None:
    class Star(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return inputs[0] - inputs[1]

    made = _export(Model(Star().eval(), (InputSpec("a", (2,)), InputSpec("b", (2,)))), tmp_path)
    assert _outputs(made.path, torch.ones(3, 2), torch.zeros(3, 2))[0].shape == (3, 2)


def test_an_lstm_with_an_embedding_is_exported(tmp_path: Path) -> None:
    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(self.embedding(x))[0][:, -1])

    model = Model(Lstm().eval(), (InputSpec("tokens", (7,), "int64"),))
    made = _export(model, tmp_path)
    tokens = torch.randint(0, 10, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(_outputs(made.path, tokens)[0], model.module(tokens).numpy(), atol=1e-5)
    assert count(made.path).parameters == sum(p.numel() for p in model.module.parameters())


class Attending(nn.Module):
    """Self-attention and attention to a part of the input, with a mask."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(12, 3, batch_first=batch_first)
        self.second = nn.MultiheadAttention(12, 2, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y, weights = self.first(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1))
        y, _ = self.second(y, x, x, need_weights=False)
        y = y if self.batch_first else y.transpose(0, 1)
        return torch.cat([y.flatten(1), weights.flatten(1)], 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_gives_the_results_of_torch_at_every_batch_size(tmp_path: Path, batch_first: bool) -> None:
    torch.manual_seed(0)
    module = Attending(batch_first).eval()
    x = torch.randn(5, 5, 12)
    with torch.no_grad():
        expected = module(x)
    exported = _export(Model(module, (InputSpec("x", (5, 12)),)), tmp_path)
    for batch in (1, 2, 5):
        np.testing.assert_allclose(_outputs(exported.path, x[:batch])[0], expected[:batch], atol=1e-5)


def test_attention_of_one_input_is_traced_in_few_nodes_and_torch_is_left_as_it_was(tmp_path: Path) -> None:
    before = nn.MultiheadAttention.forward
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    module = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten()).eval()
    exported = _export(Model(module, (InputSpec("x", (6, 16)),)), tmp_path)
    kinds = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert nn.MultiheadAttention.forward is before
    assert kinds.count("MatMul") + kinds.count("Gemm") == 6  # in, scores, mixed, out, and the two of the MLP
    assert not {"Squeeze", "Unsqueeze", "Gather", "Shape"} & set(kinds)


def test_a_gelu_is_written_as_the_runtime_fuses_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)).eval()
    exported = _export(Model(module, (InputSpec("x", (4,)),)), tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(exported.path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("Gelu") == 2
    assert "Erf" not in kinds


def test_parity_is_measured_on_the_calibration_split(tmp_path: Path) -> None:
    asked: list[int] = []

    def fetch(indices: np.ndarray) -> tuple[tuple[Tensor, ...], None]:
        asked.extend(indices.tolist())
        return (torch.zeros(len(indices), 1, 8, 8),), None

    splits = [Split(name, fetch, np.arange(10 * i, 10 * i + 3)) for i, name in enumerate(("t", "c", "v", "e"))]
    _export(_cnn(), tmp_path, data=Data("d", *splits, inputs=IMAGE, sha256=""))
    assert set(asked) == {10, 11, 12}


def test_data_with_another_number_of_inputs_is_refused_with_the_names(tmp_path: Path) -> None:
    def fetch(indices: np.ndarray) -> tuple[tuple[Tensor, ...], None]:
        return (torch.zeros(len(indices), 3),), None

    split = Split("calibration", fetch, np.arange(3))
    data = Data("pairs", split, split, split, split, inputs=IMAGE, sha256="")
    model = Model(Two(), (InputSpec("left", (3,)), InputSpec("right", (3,))), "other")
    with pytest.raises(DataError, match=r"takes 2 inputs \(left, right\), a sample of pairs has 1"):
        _export(model, tmp_path, data=data)


def test_control_flow_that_depends_on_data_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="control flow depends on the data") as caught:
        _export(Model(Branching().eval(), VECTOR), tmp_path)
    message = str(caught.value)
    line = Branching.forward.__code__.co_firstlineno + 1
    assert f"at {Path(__file__).name}, line {line}" in message
    assert len(message.splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_a_fixed_batch_is_refused_with_the_batch_that_failed(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, 4) * 2

    with pytest.raises(ExportError, match="cannot run a batch of 1"):
        _export(Model(Fixed().eval(), VECTOR), tmp_path)


def test_a_program_saved_for_one_batch_size_is_refused_with_the_mend(tmp_path: Path) -> None:
    program = torch.export.export(_cnn().module, (torch.zeros(2, 1, 8, 8),))
    with pytest.raises(ExportError, match="dynamic_shapes"):
        _export(Model(program.module(), IMAGE), tmp_path)


def test_a_program_with_a_free_batch_is_exported(tmp_path: Path) -> None:
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(_cnn().module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=free)
    made = _export(Model(program.module(), IMAGE), tmp_path)
    assert _outputs(made.path, torch.zeros(5, 1, 8, 8))[0].shape == (5, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_scripted_module_keeps_its_branches(tmp_path: Path) -> None:
    module = torch.jit.script(Branching().eval())
    made = _export(Model(module, VECTOR), tmp_path)
    for x in (torch.ones(1, 4), -torch.ones(1, 4)):
        with torch.no_grad():
            np.testing.assert_allclose(_outputs(made.path, x)[0], module(x).numpy(), atol=1e-6)


def test_a_graph_that_differs_is_refused_with_the_difference(tmp_path: Path) -> None:
    class Counter(nn.Module):
        """Gives another result at every call, as a module with hidden state does."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.calls

    with pytest.raises(ExportError, match=r"batch of 1 the ONNX graph differs from torch by \d"):
        _export(Model(Counter().eval(), VECTOR), tmp_path)
    assert not list(tmp_path.iterdir())


def test_nan_in_the_weights_is_refused(tmp_path: Path) -> None:
    model = _cnn()
    with torch.no_grad():
        next(model.module.parameters())[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        _export(model, tmp_path)


def test_a_broken_simplifier_costs_the_simplification_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(proto: onnx.ModelProto) -> onnx.ModelProto:
        raise IndexError("list index out of range")

    monkeypatch.setattr(onnxslim, "slim", broken)
    made, record = export(_cnn(), ExportConfig(), Context(data=None, directory=tmp_path))
    assert "list index out of range" in record.notes[0]
    assert _outputs(made.path, torch.zeros(3, 1, 8, 8))[0].shape == (3, 3)


def test_a_simplifier_that_changes_results_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeroing(proto: onnx.ModelProto) -> onnx.ModelProto:
        for tensor in proto.graph.initializer:
            if tensor.name == "conv.weight":
                array = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(array), tensor.name))
        return proto

    monkeypatch.setattr(onnxslim, "slim", zeroing)
    _, record = export(_cnn(), ExportConfig(), Context(data=None, directory=tmp_path))
    assert "differs from torch" in record.notes[0]
    assert record.figures["parity"] < 1e-5


def test_the_record_tells_the_figures(tmp_path: Path) -> None:
    made, record = export(_cnn(), ExportConfig(), Context(data=None, directory=tmp_path), "baseline.onnx")
    assert made.path == tmp_path / "baseline.onnx"
    assert record.figures["bytes"] == made.path.stat().st_size
    assert 0 <= record.figures["parity"] < 1e-5
    assert (record.figures["opset"], record.figures["ir_version"]) == (18, 10)
    assert record.figures["batch_norms_left"] == record.figures["foldable_left"] == 0


def test_all_problems_of_a_config_are_told_together() -> None:
    with pytest.raises(
        RecipeError, match=r"opset=9.*ir_version=14.*min_ort='1\.2'.*tolerance=0.*external_above_bytes=-1"
    ):
        ExportConfig(opset=9, ir_version=14, min_ort="1.2", tolerance=0, external_above_bytes=-1)
