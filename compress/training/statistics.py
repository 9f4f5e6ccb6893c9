"""Normalisation statistics of a model whose layers have changed."""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn

from compress.data.splits import Split


def reestimate(
    module: nn.Module,
    split: Split,
    *,
    batches: int = 20,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Set the running statistics of every batch normalisation to the mean over some batches, in place.

    After channels leave, the inputs of a layer have another mean and variance than when they were recorded: in eval
    mode the model is far off until they are taken again (Li et al. 2020, "EagleEye", adaptive batch normalisation).
    Everything else is in eval mode meanwhile, and ``module`` is left in eval mode on the CPU.

    Args:
        module: Nothing happens where it has no such layer.
        split: Samples, drawn without replacement.
        device: Where it runs.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_mean is not None
    ]
    module.to(device).eval()
    size = max(2, min(batch_size, len(split)))
    sums = [[torch.zeros_like(s) for s in _statistics(layer)] for layer in layers]
    count = 0
    for layer in layers:
        layer.train()
    with torch.no_grad():
        for inputs, _ in islice(split.batches(size, torch.Generator().manual_seed(seed)), batches):
            if not layers or len(inputs[0]) < 2:  # one sample has no variance
                continue
            for layer in layers:
                layer.running_mean.zero_()  # type: ignore[union-attr]
                layer.running_var.zero_()  # type: ignore[union-attr]
                if layer.momentum is None and layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.zero_()
            module(*(x.to(device) for x in inputs))
            for total, layer in zip(sums, layers, strict=True):
                for part, statistic in zip(total, _statistics(layer), strict=True):
                    # From zero, one step of the running mean is momentum times the batch's own.
                    part += statistic / (1.0 if layer.momentum is None else layer.momentum)
            count += 1
    for total, layer in zip(sums, layers, strict=True):
        for part, statistic in zip(total, _statistics(layer), strict=True):
            statistic.copy_(part / count) if count else None
    module.to("cpu").eval()


def _statistics(layer: nn.modules.batchnorm._NormBase) -> tuple[torch.Tensor, torch.Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var
