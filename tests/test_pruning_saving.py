"""Pruned models on disk: no pickle, and reloaded onto the original class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from compress.errors import ModelError, PruningError
from compress.pruning.saving import load, save
from compress.pruning.slicing import slice_module
from compress.pruning.surgery import cut, kept_of
from compress.pruning.traced import TracedModule
from tests.test_pruning_surgery import HIDDEN, TwoLayers
from tests.test_pruning_tracing import CONVOLUTIONS, IMAGES, Convolutions

INPUTS = (torch.randn(2, 4),)


def trained_further(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    return module


def pruned() -> tuple[nn.Module, dict[str, dict[int, torch.Tensor]]]:
    module = TwoLayers()
    kept = kept_of(module, [HIDDEN], {"fc1": torch.tensor([0, 3])})
    return trained_further(cut(module, [HIDDEN], kept, INPUTS)), {n: dict(a) for n, a in kept.items()}


def test_a_class_comes_back_with_its_trained_weights(tmp_path: Path) -> None:
    module, kept = pruned()
    save(module, kept, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.json", "weights.safetensors"]
    loaded = load(TwoLayers(), tmp_path, INPUTS)
    assert type(loaded) is TwoLayers
    assert torch.equal(loaded(*INPUTS), module(*INPUTS))
    assert loaded.fc1.out_features == 2


def test_a_traced_module_is_traced_again(tmp_path: Path) -> None:
    module = Convolutions()
    kept = kept_of(module, CONVOLUTIONS, {"conv1": torch.tensor([0, 3]), "conv2": torch.tensor([1, 2, 8])})
    smaller = trained_further(cut(module, CONVOLUTIONS, kept, IMAGES)).eval()
    save(smaller, kept, tmp_path)
    assert json.loads((tmp_path / "kept.json").read_text())["form"] == "traced"
    loaded = load(Convolutions(), tmp_path, IMAGES).eval()
    assert isinstance(loaded, TracedModule)
    assert torch.equal(loaded(*IMAGES), smaller(*IMAGES))


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    def make() -> nn.Module:
        module = nn.ModuleDict({"embedding": nn.Embedding(10, 6), "decoder": nn.Linear(6, 10)})
        module["decoder"].weight = module["embedding"].weight
        return module

    kept = {"embedding.weight": {1: torch.tensor([0, 3])}}
    smaller = slice_module(make(), kept)
    save(smaller, kept, tmp_path)
    assert set(safetensors.torch.load_file(tmp_path / "weights.safetensors")) == {"embedding.weight", "decoder.bias"}
    loaded = load(make(), tmp_path, ())
    assert loaded["decoder"].weight is loaded["embedding"].weight
    assert torch.equal(loaded["decoder"].weight, smaller["decoder"].weight)


def test_another_model_is_refused(tmp_path: Path) -> None:
    module, kept = pruned()
    save(module, kept, tmp_path)
    with pytest.raises(PruningError, match="belongs to another model"):
        load(TwoLayers(hidden=3), tmp_path, INPUTS)
    save(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), {}, tmp_path / "other")
    with pytest.raises(ModelError, match=r"missing 2: 2\.weight, 2\.bias"):
        load(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)), tmp_path / "other", INPUTS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema": 1}',
        b'{"schema": 2, "form": "class", "kept": {}}',
        b'{"schema": 1, "form": "pickle", "kept": {}}',
        b'{"schema": 1, "form": "class", "kept": {"fc1.weight": {"0": [3, 0]}}}',
        b'{"schema": 1, "form": "class", "kept": {"fc1.weight": {"0": [-1]}}}',
        b'{"schema": 1, "form": "class", "kept": {"fc1.weight": {"0": []}}}',
        b'{"schema": 1, "form": "class", "kept": {"fc1.weight": {"0": [[1]]}}}',
    ],
)
def test_a_damaged_list_of_what_is_kept_is_refused(tmp_path: Path, content: bytes) -> None:
    module, kept = pruned()
    save(module, kept, tmp_path)
    (tmp_path / "kept.json").write_bytes(content)
    with pytest.raises(PruningError, match=r"kept\.json"):
        load(TwoLayers(), tmp_path, INPUTS)
