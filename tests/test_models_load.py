"""From a file of weights, a module or an ONNX graph to a Source that says what was done to it."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from compress.errors import ModelError
from compress.models import ensure_operators, source_of
from compress.models.loading import load, load_new
from compress.models.reference import digits_cnn
from compress.values import InputSpec

DIGITS = "compress.models.reference:digits_cnn"


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_a_pickled_module_comes_back_in_eval_mode_with_the_hash_of_its_file(tmp_path: Path) -> None:
    module = digits_cnn().train()
    module[0].weight.requires_grad_(False)
    path = save(tmp_path / "model.pt", module)
    source = load(path)
    assert source.kind == "module"
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.notes == ()
    assert isinstance(source.module, nn.Sequential)
    assert not any(layer.training for layer in source.module.modules())
    assert [p.requires_grad for p in source.module.parameters()][:2] == [False, True]


def test_half_and_double_weights_become_float32_and_the_notes_say_so(tmp_path: Path) -> None:
    module = digits_cnn().to(torch.bfloat16)
    module[0].double()
    source = load(save(tmp_path / "model.pt", module))
    assert source.module is not None
    assert {p.dtype for p in source.module.parameters()} == {torch.float32}
    assert source.notes == (
        "weights cast from float64 to float32 (2 tensors)",
        "weights cast from bfloat16 to float32 (6 tensors)",
    )


def test_a_data_parallel_wrapper_is_taken_off(tmp_path: Path) -> None:
    source = load(save(tmp_path / "model.pt", nn.DataParallel(digits_cnn())))
    assert isinstance(source.module, nn.Sequential)
    assert source.notes == ("the DataParallel wrapper is taken off",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_names_and_counts(tmp_path: Path, value: float) -> None:
    module = digits_cnn()
    with torch.no_grad():
        module[2].weight[0, 0] = value
    with pytest.raises(
        ModelError, match=r"model\.pt has NaN or infinite weights in 1 tensors: 2\.weight \(9 of 4,608\)"
    ):
        load(save(tmp_path / "model.pt", module))


def test_a_state_dict_without_a_factory_shows_its_keys_and_asks_for_one(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", digits_cnn().state_dict())
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "0.weight" in str(caught.value)
    assert "--factory" in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_a_torchvision_state_dict_is_recognised_and_its_factory_named(tmp_path: Path) -> None:
    ensure_operators()
    from torchvision.models import resnet18

    path = save(tmp_path / "model.pt", resnet18(weights=None, num_classes=7).state_dict())
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "--factory torchvision.models:resnet18 --factory-args '{\"num_classes\": 7}'" in str(caught.value)
    source = load(path, factory="torchvision.models:resnet18", factory_args={"num_classes": 7})
    assert type(source.module).__name__ == "ResNet"


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped_and_its_prefix_taken_off(tmp_path: Path, wrapper: str) -> None:
    module = digits_cnn()
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    checkpoint = {wrapper: state, "epoch": 3, "args": Namespace(lr=0.1)}
    source = load(save(tmp_path / "model.pt", checkpoint), factory=DIGITS)
    assert source.module is not None
    assert torch.equal(source.module[0].weight, module[0].weight)  # type: ignore[index]
    assert source.notes == (
        f"the model is taken from the checkpoint's {wrapper!r}",
        "the prefix 'module.' is taken off every name",
    )


def test_a_state_dict_of_half_weights_is_cast_and_said(tmp_path: Path) -> None:
    source = load(save(tmp_path / "model.pt", digits_cnn().half().state_dict()), factory=DIGITS)
    assert source.notes == ("weights cast from float16 to float32 (8 tensors)",)


def test_safetensors_load_with_a_factory(tmp_path: Path) -> None:
    module = digits_cnn()
    path = tmp_path / "weights"
    safetensors.torch.save_file(module.state_dict(), path)
    source = load(path, factory=DIGITS)
    assert source.module is not None
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(source.module(x), module.eval()(x))


def test_an_old_torch_file_of_weights_still_loads(tmp_path: Path) -> None:
    torch.save(digits_cnn().state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "model.pt", factory=DIGITS).kind == "module"


def test_a_factory_that_does_not_fit_names_missing_and_unexpected_keys_and_shapes(tmp_path: Path) -> None:
    state = digits_cnn().state_dict()
    state["extra"] = torch.ones(1)
    state["8.weight"] = torch.ones(5, 80)
    del state["8.bias"]
    with pytest.raises(ModelError) as caught:
        load(save(tmp_path / "model.pt", state), factory=DIGITS)
    told = str(caught.value)
    assert "missing 1: 8.bias" in told
    assert "unexpected 1: extra" in told
    assert "other shape 1: 8.weight (5, 80) for (10, 80)" in told


def test_a_module_that_needs_no_factory_says_that_it_is_not_used(tmp_path: Path) -> None:
    source = load(save(tmp_path / "model.pt", digits_cnn()), factory=DIGITS)
    assert source.notes == (f"--factory {DIGITS} is not used: the file holds the whole model",)


@pytest.mark.parametrize(
    ("payload", "told"),
    [(torch.ones(3), "holds a Tensor"), ({"epoch": 1}, "keys: epoch"), ({}, "keys: none"), ([1], "holds a list")],
)
def test_a_payload_that_is_no_model_is_refused_as_what_it_is(tmp_path: Path, payload: object, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        load(save(tmp_path / "model.pt", payload), factory=DIGITS)


def write_onnx(path: Path, batch: str | int, weights: str | None = None) -> Path:
    helper, kind = onnx.helper, onnx.TensorProto
    x = helper.make_tensor_value_info("x", kind.FLOAT, [batch, 3])
    y = helper.make_tensor_value_info("y", kind.FLOAT, [batch, 2])
    weight = onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    if weights:
        onnx.external_data_helper.set_external_data(weight, weights)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return path


def test_an_onnx_file_enters_at_quantize_with_its_inputs_and_opset(tmp_path: Path) -> None:
    source = load(write_onnx(tmp_path / "model.pt", "n"))
    assert source.kind == "onnx"
    assert source.module is None
    assert source.onnx is not None
    assert (source.onnx.opset, source.onnx.task) == (18, "classification")
    assert source.onnx.inputs == (InputSpec("x", (3,)),)
    assert source.skips is not None
    assert source.skips.endswith("it enters at quantize")
    assert source.notes == ()


def test_an_onnx_file_with_a_fixed_batch_says_so(tmp_path: Path) -> None:
    assert load(write_onnx(tmp_path / "m.onnx", 1)).fixed_batch == 1
    assert load(write_onnx(tmp_path / "m.onnx", "n")).fixed_batch is None


def test_the_hash_of_an_onnx_file_is_of_its_weights_beside_it_too(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", "n")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    before = load(path).sha256
    (tmp_path / "m.data").write_bytes(bytes(len((tmp_path / "m.data").read_bytes())))
    assert load(path).sha256 != before


def test_weights_for_a_factory_are_mapped_into_memory_and_a_whole_module_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are copied into the module; a module that lay in its file would change when the file is written."""
    read, mapped = torch.load, []

    def watched(*args: Any, mmap: bool | None = None, **kwargs: Any) -> Any:
        mapped.append(mmap)
        return read(*args, mmap=mmap, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    load(save(tmp_path / "state.pt", digits_cnn().state_dict()), factory=DIGITS)
    module = load(save(tmp_path / "module.pt", digits_cnn())).module
    assert mapped == [True, False]
    assert module is not None
    before = [p.clone() for p in module.parameters()]
    save(tmp_path / "module.pt", digits_cnn())
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_an_onnx_file_without_its_weights_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'weights\.bin', which is not beside it"):
        load(write_onnx(tmp_path / "m.onnx", "n", "weights.bin"))


NET = """
from torch import nn
def make(width: int = 10):
    if width < 0:
        raise ValueError("width must be positive")
    return nn.Sequential(nn.Linear(4, width))
Net = make
constant = 3
def wrong():
    return {}
"""


@pytest.mark.parametrize(
    ("factory", "args", "told"),
    [
        ("net", {}, "is not of the form"),
        ("nosuchpackage.models:Net", {}, "there is no module 'nosuchpackage'"),
        ("./nosuch.py:Net", {}, "there is no file nosuch.py"),
        ("./net.py:net", {}, "has no 'net'. Did you mean Net?"),
        ("./net.py:constant", {}, "is a int, not a class or function"),
        ("./net.py:wrong", {}, "returned a dict, not a torch.nn.Module"),
        ("./net.py:make", {"width": -1}, "failed with ValueError: width must be positive"),
        ("./net.py:make", {"depth": 1}, "--factory-args"),
        ("./broken.py:Net", {}, "running broken.py failed with ZeroDivisionError"),
        ("./needs.py:Net", {}, "running needs.py failed with ModuleNotFoundError"),
    ],
)
def test_a_factory_that_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, args: dict[str, int], told: str
) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needs.py").write_text("import nosuchpackage")
    path = save(tmp_path / "model.pt", nn.Sequential(nn.Linear(4, 10)).state_dict())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(path, factory=factory, factory_args=args)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_factory_from_a_file_may_import_its_neighbours_and_take_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_layers.py").write_text("WIDTH = 6\n")
    (tmp_path / "net.py").write_text(NET + "import my_layers\nWIDTH = my_layers.WIDTH\n")
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "model.pt", nn.Sequential(nn.Linear(4, 6)).state_dict())
    source = load(path, factory="./net.py:make", factory_args=json.loads('{"width": 6}'))
    assert source.module is not None
    assert source.module(torch.ones(1, 4)).shape == (1, 6)


def test_a_tied_weight_may_come_under_one_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = nn.Linear(4, 4, bias=False)\n"
        "        self.b = nn.Linear(4, 4, bias=False)\n"
        "        self.b.weight = self.a.weight\n"
    )
    monkeypatch.chdir(tmp_path)
    weight = torch.rand(4, 4)
    source = load(save(tmp_path / "model.pt", {"b.weight": weight}), factory="./net.py:Net")
    assert source.module is not None
    assert torch.equal(source.module.state_dict()["a.weight"], weight)


def test_new_weights_are_others_once_the_file_of_the_factory_changes(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 2)\n")
    first = load_new(f"{file}:make")
    assert load_new(f"{file}:make").sha256 == first.sha256
    file.write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 3)\n")
    assert load_new(f"{file}:make").sha256 != first.sha256
    assert source_of(f"{file}:make") == file.read_bytes()
    assert source_of("torchvision.models:resnet18") == source_of(None) == b""
