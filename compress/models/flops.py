"""Floating-point operations of one sample, and which weight each of them belongs to."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from compress.quiet import quiet

ACTIVATIONS = ""  # stands for the weight of products between activations, as in attention


def flops_by_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Operations of one sample for each weight: two for a multiplication with its addition, as torch counts them.

    Only products count (convolution, linear, matmul, recurrent layers), as in `torch.utils.flop_counter`.

    Args:
        module: On the CPU; it stays as it is.
        inputs: Real samples, each (N, …); the first is used.

    Returns:
        Parameter name -> operations. What belongs to no parameter of two or more axes (products of activations, and
        of weights that are computed from others) is under `ACTIVATIONS`.
    """
    module = copy.deepcopy(module).eval()
    weights = {p.untyped_storage().data_ptr(): name for name, p in module.named_parameters() if p.ndim >= 2}
    with quiet(), _unfused(), _Counting(weights) as counting:
        module(*(x[:1] for x in inputs))
    return dict(counting.flops)


def effective_flops(module: nn.Module, flops: Mapping[str, int]) -> int:
    """The operations of ``flops`` that are left without multiplications by a zero weight.

    What an engine with sparse kernels could save at best. ONNX Runtime has none: there it changes nothing.
    """
    density = {name: int(p.count_nonzero()) / max(1, p.numel()) for name, p in module.named_parameters()}
    return round(sum(count * density.get(name, 1.0) for name, count in flops.items()))


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """No kernel that hides its products: oneDNN's LSTM, fused attention, and what encoder layers use without grad."""
    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        yield


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, weights: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[str] = Counter()
        self._weights = weights  # address of the storage -> name: views of a weight share it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            names = (self._weights.get(t.untyped_storage().data_ptr()) for t in tensors)
            owner = next((name for name in names if name is not None), ACTIVATIONS)
            self.flops[owner] += formula(*args, **kwargs, out_val=out)
        return out
