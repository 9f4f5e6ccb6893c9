"""What training would change next: the gradient of the loss, averaged over some batches."""

from __future__ import annotations

import copy
from itertools import islice

import torch
from torch import Tensor, nn

from compress.data.splits import Split
from compress.training.finetune import FineTuneConfig, loss_of, thaw


def mean_gradients(
    module: nn.Module,
    split: Split,
    *,
    batches: int = 8,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Gradient of the cross-entropy by parameter name, each of the parameter's shape, on the CPU.

    In eval mode, on a copy. Without labels the model's own top-1 stands for them.

    Args:
        split: Samples, drawn without replacement; ``batches * batch_size`` of them at most.
    """
    probe = thaw(copy.deepcopy(module)).to(device).eval()
    for layer in probe.modules():
        if isinstance(layer, nn.RNNBase):  # cuDNN has its backward pass in train mode only
            layer.train()
            layer.dropout = 0.0
    count = 0
    for inputs, labels in islice(split.batches(batch_size, torch.Generator().manual_seed(seed)), batches):
        outputs = probe(*(x.to(device) for x in inputs))
        targets = outputs.detach().argmax(dim=1) if labels is None else labels.to(device)
        # The sum over samples: a last batch that is smaller then weighs less.
        (loss_of(outputs, None, targets, FineTuneConfig()) * len(targets)).backward()  # type: ignore[no-untyped-call]
        count += len(targets)
    return {
        name: torch.zeros_like(p).cpu() if p.grad is None else (p.grad / max(1, count)).cpu()
        for name, p in probe.named_parameters()
    }
