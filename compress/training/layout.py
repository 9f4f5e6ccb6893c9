"""The memory layout in which a convolutional model trains fastest on a CPU: channels last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.data.splits import Split

# Of two layouts of one model: sums of float32 in another order, through tens of layers.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True)
class Layout:
    """How the inputs of a model lie in memory: its own choice of strides, never of values."""

    channels_last: bool = False  # (N, C, H, W) inputs lie as (N, H, W, C), and what is computed from them too
    reshaping: bool = False  # the forward pass calls `Tensor.view`, which this layout does not allow: copy instead

    def run(self, module: nn.Module, inputs: Sequence[Tensor]) -> Any:
        """The outputs of ``module`` on ``inputs``, which may lie in any way."""
        with _Reshaping() if self.reshaping else nullcontext():
            return module(*(_last(x) if self.channels_last and x.ndim == 4 else x for x in inputs))


class _Reshaping(TorchFunctionMode):
    """Where `Tensor.view` would have to copy, it copies: `Tensor.reshape`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        views = (torch.Tensor.view, torch.ops.aten.view.default)  # the second is what traced models call
        sized = func in views and not any(isinstance(a, torch.dtype) for a in (*args, *options.values()))
        return (torch.Tensor.reshape if sized else func)(*args, **options)


@contextmanager
def fastest_layout(module: nn.Module, split: Split, device: str, batch: int = 2) -> Iterator[Layout]:
    """The layout to train ``module`` in, within the block.

    Channels last where the module has 2-d convolutions, is on the CPU, and answers the same in it. There the kernels
    take no detour through a layout of their own in every layer (measured, 1 thread, whole training steps: MobileNetV2
    2.1 times faster, LeNet-5 1.6, the fine-grained-pruning CNN 1.2, ResNet-18 1.1). It depends on the module alone and
    on no timing: the same run takes the same one again.

    Weights keep their order in memory. Those of depthwise convolutions, (C, 1, kH, kW), lie the same in both layouts,
    and only their strides tell the kernel which it is: they are set within the block, and put back.

    Args:
        module: In eval mode, on ``device``.
        split: A batch of its samples tells whether the answers are the same.
        device: What it trains on.
        batch: Samples a step: kernels, and with them the layouts of what they return, depend on it.
    """
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    inputs = split.fetch(split.indices[:batch])[0] if convolutions and device == "cpu" else ()
    if not any(x.ndim == 4 for x in inputs):
        yield Layout()
        return
    depthwise = [layer.weight for layer in convolutions if layer.weight.shape[1] == 1]
    before = [weight.stride() for weight in depthwise]
    plain = _answer(Layout(), module, inputs)
    try:
        for weight in depthwise:
            weight.data = weight.data.to(memory_format=torch.channels_last)
        candidates = (Layout(channels_last=True), Layout(channels_last=True, reshaping=True))
        yield next((one for one in candidates if _same(plain, _answer(one, module, inputs))), Layout())
    finally:
        for weight, stride in zip(depthwise, before, strict=True):
            weight.data = weight.data.as_strided(weight.shape, stride)


def _answer(layout: Layout, module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The outputs, or None where the module cannot be run so. With gradients: without, other kernels may run."""
    try:
        answer = layout.run(module, inputs)
        return answer.detach() if isinstance(answer, Tensor) else answer
    except RuntimeError:  # "view size is not compatible with input tensor's size and stride"
        return None


def _same(one: Any, other: Any) -> bool:
    """Whether two outputs differ by no more than the order of sums."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE * max(1.0, one.abs().max().item()))


def _last(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) with the strides of channels last, which `Tensor.contiguous` does not set where C is 1."""
    n, c, h, w = x.shape
    return torch.empty_strided((n, c, h, w), (c * h * w, 1, w * c, c), dtype=x.dtype, device=x.device).copy_(x)
