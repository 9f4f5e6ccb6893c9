"""TorchScript and .pt2 programs load, and cannot carry code in."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ModelError, UntrustedPickleError
from compress.models import bind
from compress.models.loading import load
from compress.models.reference import LSTMClassifier, digits_cnn
from compress.values import InputSpec

IMAGES = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def export(path: Path, module: nn.Module, example: tuple[Tensor, ...]) -> Path:
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on its own LSTM: attributes "were assigned during export"
        torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=shapes), path)
    return path


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None) -> None:
    """Write an archive again, each member changed (None: left out), and ``extra`` ones added."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(members)).partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)
        for name, content in (extra or {}).items():
            archive.writestr(f"{folder}/{name}", content)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = export(tmp_path_factory.mktemp("pt2") / "model.pt2", digits_cnn(), IMAGES)
    rewrite(path, lambda name, content: content)
    return path.read_bytes()


def test_an_exported_program_enters_at_export_with_the_inputs_it_was_made_with(tmp_path: Path, exported: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(exported)
    source = load(tmp_path / "model.pt")
    assert source.kind == "exported"
    assert source.inputs == (InputSpec("input", (1, 8, 8)),)
    assert source.skips is not None
    assert "enters at export" in source.skips
    assert bind(source, source.inputs, IMAGES).task == "classification"


def test_an_exported_recurrent_network_with_integer_inputs_loads(tmp_path: Path) -> None:
    ids = torch.randint(1, 20, (2, 5))
    source = load(export(tmp_path / "model.pt2", LSTMClassifier(20, 4, 4), (ids,)))
    assert source.inputs == (InputSpec("ids", (5,), "int64"),)


def test_a_program_exported_for_one_batch_size_is_told_so(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(digits_cnn().eval(), IMAGES), tmp_path / "model.pt2")
    source = load(tmp_path / "model.pt2")
    with pytest.raises(ModelError, match="dynamic_shapes"):
        bind(source, (InputSpec("input", (1, 8, 8)),), IMAGES)


class Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.marker}",)


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Touch(marker),), buffer)
    return buffer.getvalue()


def edit_program(edit: Callable[[dict[str, Any], Path], None]) -> Callable[[Path, Path], None]:
    def attack(path: Path, marker: Path) -> None:
        def change(name: str, content: bytes) -> bytes:
            if not name.endswith("models/model.json"):
                return content
            program = json.loads(content)
            edit(program, marker)
            return json.dumps(program).encode()

        rewrite(path, change)

    return attack


def operator(program: dict[str, Any], marker: Path) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}]


def expression(program: dict[str, Any], marker: Path) -> None:
    sizes = program["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = f"__import__('os').system('touch {marker}')"


def guard(program: dict[str, Any], marker: Path) -> None:
    program["guards_code"] = [f"__import__('os').system('touch {marker}') == 0"]


def name_of_a_weight(program: dict[str, Any], marker: Path) -> None:
    program["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = (
        f'a") or __import__("os").system("touch {marker}") or ("'
    )


def default_factory(program: dict[str, Any], marker: Path) -> None:
    spec = {"type": "collections.defaultdict", "context": '{"default_factory_module": "os"}', "children_spec": []}
    program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, spec])


def sample_inputs(path: Path, marker: Path) -> None:
    rewrite(path, lambda name, content: pickled(marker) if name.endswith("sample_inputs/model.pt") else content)


def pickled_weight(path: Path, marker: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return pickled(marker)
        if name.endswith("model_weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return content

    rewrite(path, change)


def pickled_constant(path: Path, marker: Path) -> None:
    rewrite(path, lambda name, content: content, {"data/constants/opaque_obj_0": pickled(marker)})


def compiled_library(path: Path, marker: Path) -> None:
    rewrite(path, lambda name, content: content, {"data/aotinductor/model/model.so": b"\x7fELF"})


def second_member_of_one_name(path: Path, marker: Path) -> None:
    rewrite(path, lambda name, content: content, {"data/sample_inputs/MODEL.pt": pickled(marker)})


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "operator": edit_program(operator),
    "expression": edit_program(expression),
    "guard": edit_program(guard),
    "name of a weight": edit_program(name_of_a_weight),
    "default factory": edit_program(default_factory),
    "sample inputs": sample_inputs,
    "pickled weight": pickled_weight,
    "pickled constant": pickled_constant,
    "compiled library": compiled_library,
    "second member of one name": second_member_of_one_name,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_exported_program_that_could_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, exported: bytes, attack: str
) -> None:
    path, marker = tmp_path / "model.pt2", tmp_path / "marker"
    path.write_bytes(exported)
    ATTACKS[attack](path, marker)
    with pytest.raises(UntrustedPickleError, match="--trust-pickle") as caught:
        load(path)
    assert not marker.exists()
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("attack", ["sample inputs", "expression"])
def test_the_attacks_of_these_tests_do_run_when_the_program_is_trusted(
    tmp_path: Path, exported: bytes, attack: str
) -> None:
    path, marker = tmp_path / "model.pt2", tmp_path / "marker"
    path.write_bytes(exported)
    ATTACKS[attack](path, marker)
    with pytest.raises(ModelError, match="cannot be read as an exported program"):
        load(path, trust_pickle=True)
    assert marker.exists()


def script(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; files of it exist
        torch.jit.save(torch.jit.script(module.eval()), path)
    return path


def test_torchscript_enters_at_export_and_runs(tmp_path: Path) -> None:
    module = digits_cnn()
    source = load(script(tmp_path / "model.onnx", module))
    assert source.kind == "torchscript"
    assert source.skips is not None
    assert "prune and sparsify skipped" in source.skips
    bound = bind(source, (InputSpec("x", (1, 8, 8)),), IMAGES)
    with torch.no_grad():
        assert torch.allclose(bound.module(*IMAGES), module(*IMAGES), atol=1e-6)


class Saves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "written")
        return x


def test_torchscript_that_could_write_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UntrustedPickleError, match="'save'"):
        load(script(tmp_path / "model.pt", Saves()))
