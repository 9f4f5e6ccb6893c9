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
    module.eval()
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's sign for a plain mean over all batches
        layer.train()
    module.to(device)
    size = max(2, min(batch_size, len(split)))
    with torch.no_grad():
        for inputs, _ in islice(split.batches(size, torch.Generator().manual_seed(seed)), batches):
            if len(inputs[0]) > 1:  # one sample has no variance
                module(*(x.to(device) for x in inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    module.to("cpu").eval()
