"""State dicts: telling one from other payloads, fitting it into a module, and a module's own state as bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.torchvision_compat import ensure_operators

State = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep the model
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_SHOWN = 4  # keys told in one message
# Probed for a suggestion; each is recognised by its whole set of keys.
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16")


def save_state(module: nn.Module) -> bytes:
    """The parameters and persistent buffers of ``module`` as safetensors. Tied tensors are written under each name."""
    state = module.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise ModelError(f"the state of {type(module).__name__} holds values that are not tensors: {_some(strange)}.")
    content: bytes = safetensors.torch.save(
        {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    )
    return content


def load_state(module: nn.Module, content: bytes) -> None:
    """Put what ``save_state`` wrote into ``module``, in place; names and shapes must match exactly."""
    fit(module, safetensors.torch.load(content), what="the saved state", target=type(module).__name__)


def read_safetensors(path: Path) -> State:
    """All tensors of a safetensors file."""
    try:
        tensors: State = safetensors.torch.load_file(path)
    except Exception as error:
        raise ModelError(f"{path} is damaged safetensors ({error}). Copy or download it again.") from error
    return tensors


def unwrap(payload: Any) -> tuple[Any, tuple[str, ...]]:
    """The model or state dict inside a checkpoint, and notes on what was taken off it."""
    notes: list[str] = []
    if isinstance(payload, Mapping) and not is_state(payload):
        for key in _WRAPPERS:
            if isinstance(payload.get(key), nn.Module) or is_state(payload.get(key)):
                notes.append(f"the model is taken from the checkpoint's {key!r}")
                payload = payload[key]
                break
    if is_state(payload):
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in payload):
                payload = {name.removeprefix(prefix): value for name, value in payload.items()}
                notes.append(f"the prefix {prefix!r} is taken off every name")
    return payload, tuple(notes)


def is_state(value: Any) -> bool:
    """Whether ``value`` is a mapping from names to tensors, and not empty."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def fit(module: nn.Module, state: Mapping[str, Tensor], *, what: str, target: str) -> None:
    """Copy ``state`` into ``module``, in place; a tied tensor may come under one of its names.

    Raises:
        ModelError: names are missing or unexpected, or shapes differ; the first few of each are told.
    """
    own = module.state_dict(keep_vars=True)
    given = {id(own[name]) for name in state if name in own}
    problems = {
        "missing": [name for name, tensor in own.items() if name not in state and id(tensor) not in given],
        "unexpected": [name for name in state if name not in own],
        "other shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    told = "; ".join(f"{kind} {len(names)}: {_some(names)}" for kind, names in problems.items() if names)
    if told:
        raise ModelError(
            f"{what} does not fit {target}. {told}.\nCheck the factory and its arguments (--factory-args)."
        )
    module.load_state_dict(dict(state), strict=False)  # missing names are tied ones: checked above


def explain_state(path: Path, state: Mapping[str, Tensor]) -> str:
    """The error for a state dict without a factory."""
    step = suggest_factory(state) or "--factory package.module:callable or --factory ./net.py:Net"
    return (
        f"{path} holds weights only ({len(state)} tensors: {_some(list(state))}), not the model's code.\n"
        f"Name what builds the model: {step}."
    )


def suggest_factory(state: Mapping[str, Tensor]) -> str | None:
    """The options that build the torchvision model with exactly these names, or None."""
    ensure_operators()
    from torchvision import models

    for name in _TORCHVISION:
        with torch.device("meta"):
            own = models.get_model(name, weights=None).state_dict()
        if own.keys() == state.keys():
            classes = len(state[list(own)[-1]])  # the head's bias comes last
            args = "" if classes == 1000 else f" --factory-args '{{\"num_classes\": {classes}}}'"
            return f"--factory torchvision.models:{name}{args}"
    return None


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity, naming the first tensors that hold them."""
    found: list[str] = []
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ModelError(
                f"{path}: the tensor {name!r} has no values (meta device). Save the model with its weights."
            )
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided:
            bad = tensor.numel() - int(tensor.isfinite().sum())
            if bad:
                found.append(f"{name} ({bad:,} of {tensor.numel():,})")
    if found:
        raise ModelError(
            f"{path} has NaN or infinite weights in {len(found)} tensors: {_some(found)}. Use a checkpoint from before "
            f"the training diverged."
        )


def cast_notes(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """One line for each dtype of weights that float32 replaces."""
    kinds = Counter(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return tuple(
        f"weights cast from {str(kind).removeprefix('torch.')} to float32 ({count} tensor{'s' * (count > 1)})"
        for kind, count in kinds.items()
        if kind is not torch.float32
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
