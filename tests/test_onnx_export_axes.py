"""compress.onnx_export: texts of any length, where that agrees with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.errors import ExportError
from compress.models.counts import count
from compress.models.onnx_file import graph_inputs, read, strip
from compress.models.reference import LSTMClassifier
from compress.onnx_export import ExportConfig, export
from compress.values import Context, InputSpec, Model, OnnxModel, StageRecord

TEXT = (InputSpec("ids", (48,), "int64"),)
LENGTHS = (48, 17, 5)


class MeanOfWords(nn.Module):
    """Word ids (N, T) to logits (N, 2), and one number a word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        words = self.embedding(ids)
        return self.head(words.mean(1)), words.sum(2)


def _export(module: nn.Module, folder: Path, config: ExportConfig | None = None) -> tuple[OnnxModel, StageRecord]:
    return export(Model(module.eval(), TEXT), config or ExportConfig(), Context(data=None, directory=folder))


def _ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 30, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.fixture(scope="module")
def lstm() -> nn.Module:
    torch.manual_seed(0)
    return LSTMClassifier(30, embedding=8, hidden=16, layers=1).eval()


@pytest.fixture(scope="module")
def lstm_file(lstm: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return _export(lstm, tmp_path_factory.mktemp("lstm"))[0]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_lstm_takes_texts_of_any_length(lstm: nn.Module, lstm_file: OnnxModel, batch: int) -> None:
    session = onnxruntime.InferenceSession(lstm_file.path, providers=["CPUExecutionProvider"])
    for length in LENGTHS:
        ids = _ids(batch, length)
        with torch.no_grad():
            expected = lstm(ids).numpy()
        np.testing.assert_allclose(session.run(None, {"ids": ids.numpy()})[0], expected, atol=1e-6)


def test_both_axes_are_named_and_the_usual_length_is_kept(lstm_file: OnnxModel) -> None:
    proto = read(lstm_file.path)
    assert [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "length"]
    assert graph_inputs(proto) == lstm_file.inputs == (InputSpec("ids", (48,), "int64", free=(0,)),)
    strip(proto)
    assert graph_inputs(proto)[0].shape == (48,)


def test_macs_are_those_of_a_text_of_the_usual_length(lstm_file: OnnxModel) -> None:
    gates = 48 * 4 * 16 * (8 + 16)
    assert count(lstm_file.path).macs == gates + 16 * 2


def test_an_lstm_is_exported_with_a_free_length_a_second_time_too(
    lstm: nn.Module, lstm_file: OnnxModel, tmp_path: Path
) -> None:
    """torch 2.13 keeps how it traced an LSTM first: the next export would have had a fixed length."""
    made, record = _export(lstm, tmp_path, ExportConfig(dynamic_length="yes"))
    assert made.inputs[0].free == (0,)
    assert made.path.read_bytes() == lstm_file.path.read_bytes()
    assert record.figures["free_axes"] == {"ids": [0, 1]}


def test_the_length_can_be_fixed(tmp_path: Path) -> None:
    made, record = _export(MeanOfWords(), tmp_path, ExportConfig(dynamic_length="no"))
    assert made.inputs == TEXT
    assert record.figures["free_axes"] == {"ids": [0]}
    assert record.notes == ()


def test_outputs_that_are_as_long_as_the_text_are_free_too(tmp_path: Path) -> None:
    made, _ = _export(MeanOfWords(), tmp_path)
    outputs = read(made.path).graph.output
    assert [dim.dim_param for dim in outputs[1].type.tensor_type.shape.dim] == ["batch", "length"]


def test_a_model_of_one_length_gets_a_fixed_axis_and_a_note(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(48 * 4, 2))
    made, record = _export(module, tmp_path)
    assert made.inputs == TEXT
    assert "the length of texts is fixed" in record.notes[0]


def test_a_free_length_that_was_asked_for_and_cannot_be_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(48 * 4, 2))
    with pytest.raises(ExportError, match=r"cannot run a batch of 1 \(inputs \(1, 16\)\)"):
        _export(module, tmp_path, ExportConfig(dynamic_length="yes"))
    assert not list(tmp_path.iterdir())


def test_a_free_length_without_a_text_is_refused_with_the_advice(tmp_path: Path) -> None:
    model = Model(nn.Linear(4, 2).eval(), (InputSpec("x", (4,)),))
    with pytest.raises(ExportError, match="no input is a text"):
        export(model, ExportConfig(dynamic_length="yes"), Context(data=None, directory=tmp_path))


def test_a_foreign_file_takes_the_size_of_its_free_axis_from_the_data() -> None:
    value = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "t"])
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], []))
    assert graph_inputs(proto, like=(InputSpec("text", (12,), "int64"),)) == (
        InputSpec("ids", (12,), "int64", free=(0,)),
    )
