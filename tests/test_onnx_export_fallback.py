"""compress.onnx_export: the old exporter where torch.export refuses, on proof of parity over many inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.errors import ExportError
from compress.onnx_export import ExportConfig, export
from compress.onnx_export.parity import SAMPLES, probe_cases
from compress.values import Context, InputSpec, Model

VECTOR = (InputSpec("input", (4,)),)


class NeverNegative(nn.Module):
    """Branches on the data, but no input takes the other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().sum() >= 0:
            return self.fc(x)
        return self.fc(-x)


class SometimesLarge(nn.Module):
    """Takes another branch for large values, which few samples have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if x.abs().max() > 6:
            return y.relu()
        return y


def _refused_by_torch_export(module: nn.Module, folder: Path, config: ExportConfig | None = None) -> tuple[Path, str]:
    torch.manual_seed(0)
    model = Model(module.eval(), VECTOR)
    made, record = export(model, config or ExportConfig(), Context(data=None, directory=folder))
    assert record.figures["exporter"] == "torchscript"
    return made.path, record.notes[0]


def test_a_branch_that_no_input_takes_is_exported_with_a_note(tmp_path: Path) -> None:
    module = NeverNegative()
    path, note = _refused_by_torch_export(module, tmp_path)
    assert "old exporter" in note
    assert "depends on the data" in note
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], module(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("limit", [2_000_000_000, 0])
def test_the_old_exporter_leaves_no_path_in_the_file(tmp_path: Path, limit: int) -> None:
    path, _ = _refused_by_torch_export(NeverNegative(), tmp_path, ExportConfig(external_above_bytes=limit))
    content = path.read_bytes()
    for word in (str(tmp_path), str(Path.cwd()), "/tmp", ".py", "forward", "torch"):
        assert word.encode() not in content


def test_a_branch_that_some_inputs_take_is_refused_with_the_reason_of_torch_export(tmp_path: Path) -> None:
    model = Model(SometimesLarge().eval(), VECTOR)
    with pytest.raises(ExportError, match="control flow depends on the data"):
        export(model, ExportConfig(), Context(data=None, directory=tmp_path))
    assert not list(tmp_path.iterdir())


def test_probes_hold_negatives_larger_values_and_zeros() -> None:
    samples = (torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0)),)
    tried = [case.inputs["input"] for case in probe_cases(Model(NeverNegative(), VECTOR), samples)]
    own = samples[0][-1:].numpy()
    for wanted in (own, -own, 10 * own, 0 * own):
        assert any(np.array_equal(x, wanted) for x in tried)


def test_probes_that_torch_answers_with_nan_prove_nothing() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    samples = (torch.rand(SAMPLES, 4, generator=torch.Generator().manual_seed(0)),)
    cases = probe_cases(Model(Root(), VECTOR), samples)
    assert all((case.inputs["input"] >= 0).all() for case in cases)
    assert len(cases) == 2 * (len(cases) // 2) + 1  # samples, ten times each, and zeros


def test_whole_numbers_are_reversed_and_not_made_negative() -> None:
    samples = (torch.arange(SAMPLES * 4).reshape(SAMPLES, 4),)
    cases = probe_cases(Model(nn.Embedding(SAMPLES * 4, 2), (InputSpec("ids", (4,), "int64"),)), samples)
    last = samples[0][-1:].numpy()
    assert any(np.array_equal(case.inputs["ids"], last[:, ::-1]) for case in cases)
    assert all((case.inputs["ids"] >= 0).all() for case in cases)
