"""What importance is judged by: the weights, and what calibration data say about them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.splits import Split
from compress.errors import PruningError
from compress.pruning.values import ChannelGroup, Member
from compress.training.finetune import FineTuneConfig, log_scores, loss_of
from compress.values import Progress, silent

# The model's outputs, the labels (N,) or None, and what random draws are made from -> the mean loss of the samples.
Loss = Callable[[Any, Tensor | None, torch.Generator], Tensor]


@dataclass(frozen=True)
class Evidence:
    """What the importance functions look at. Tensors are on the CPU, without a graph."""

    weights: Mapping[str, Tensor]  # the state dict, buffers too
    gradients: Mapping[str, Tensor] | None = None  # of the mean loss, by parameter name; None: no data
    fisher: Mapping[str, Tensor] | None = None  # group name -> (channels,) mean squared gate gradient; None: no data
    seed: int = 0


def from_weights(module: nn.Module, seed: int = 0) -> Evidence:
    """Evidence without data: enough for every importance but taylor and fisher."""
    return Evidence({name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}, seed=seed)


def gather(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    split: Split,
    *,
    loss: Loss | None = None,
    batches: int = 64,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Evidence:
    """Run calibration data through a copy of ``module`` in eval mode and keep what the gradients say.

    The gate gradients (see `gate_gradients`) are squared batch by batch, so small batches come close to the empirical
    Fisher information of each channel (Theis et al. 2018; Liu et al. 2021), one gate for all members of a group.

    Args:
        groups: Those that `Evidence.fisher` is wanted for; frozen ones are left out.
        split: Samples, drawn without replacement; ``batches * batch_size`` of them at most.
        loss: The mean loss of a batch; None: `answer_loss`.

    Raises:
        PruningError: no samples, or a loss that is not finite.
    """
    if len(split) == 0:
        raise PruningError(f"gradients need calibration samples, but split {split.name!r} is empty.")
    free = [group for group in groups if group.frozen is None]
    worker = copy.deepcopy(module).to(device).eval()
    parameters = {n: p.requires_grad_(True) for n, p in worker.named_parameters() if p.is_floating_point()}
    mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
    fisher = {group.name: torch.zeros(group.channels, dtype=torch.float64) for group in free}
    generator = torch.Generator().manual_seed(seed)
    total, done = min(batches, ceil(len(split) / batch_size)), 0
    for number, (inputs, labels) in enumerate(islice(split.batches(batch_size, generator), batches), start=1):
        value = _loss_on(worker, inputs, labels, loss or answer_loss, generator, device)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        gradients = {n: g for n, g in zip(parameters, found, strict=True) if g is not None}
        size = len(inputs[0])
        for name, gradient in gradients.items():
            mean[name].add_(gradient, alpha=size)
        for name, gate in gate_gradients(free, parameters, gradients).items():
            fisher[name] += size * gate.square().cpu()
        done += size
        progress("gradients on calibration data", number, total)
    return Evidence(
        from_weights(module).weights,
        {name: (tensor / done).cpu() for name, tensor in mean.items()},
        {name: squares / done for name, squares in fisher.items()},
        seed,
    )


def answer_loss(outputs: Any, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Cross-entropy with the labels, or without any with labels that are drawn from the model's own answers.

    Drawn labels make the squared gradients the Fisher information itself, in expectation (Martens 2014). The
    divergence from the unpruned model would not do: its gradient is zero where nothing has been pruned yet.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PruningError(f"gradients were asked of outputs (N, C) of a classifier, found {found}. Give a loss.")
    if labels is None:
        probabilities = F.softmax(log_scores(outputs, outputs), dim=1).detach().cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(outputs.device)
    return loss_of(outputs, None, labels, FineTuneConfig())


def gate_gradients(
    groups: Iterable[ChannelGroup], weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The derivative of the loss by a gate on each channel: group name -> (channels,) float64.

    The gate multiplies the channel where it is read. A channel leaves by its readers' columns becoming zero, so the
    gate is one factor on all "in" entries together, and its derivative at 1 is the sum of weight times gradient over
    them: exact, across any number of readers, and nothing is counted twice on the way. Where no weight reads the
    channels, the sum is over the entries that make them.
    """
    sums: dict[tuple[str, int], Tensor] = {}
    gates = {}
    for group in groups:
        readers = [m for m in group.members if m.role == "in"] or [m for m in group.members if m.role == "out"]
        gate = torch.zeros(group.channels, dtype=torch.float64)
        for member in readers:
            if member.name not in gradients:
                continue  # the loss does not depend on it
            key = (member.name, member.axis)
            if key not in sums:
                product = weights[member.name].detach() * gradients[member.name]
                sums[key] = sum_but(product, member.axis).cpu()
            gate.index_add_(0, member.channel, sums[key][member.index])
        gates[group.name] = gate
    return gates


def channel_sums(values: Tensor, member: Member, channels: int) -> Tensor:
    """Sum of ``values`` over each channel's entries: (channels,) float64.

    Args:
        values: A figure for each element of the member's entries; axis ``member.axis`` has (entries,).
    """
    sums = sum_but(values, member.axis)
    return torch.zeros(channels, dtype=torch.float64).index_add_(0, member.channel, sums)


def sum_but(values: Tensor, axis: int) -> Tensor:
    """Sum over all axes but one, float64."""
    others = [i for i in range(values.ndim) if i != axis]
    return values.sum(others, dtype=torch.float64) if others else values.double()


def _loss_on(
    worker: nn.Module,
    inputs: tuple[Tensor, ...],
    labels: Tensor | None,
    loss: Loss,
    generator: torch.Generator,
    device: str,
) -> Tensor:
    # cuDNN has no backward pass for recurrent layers in eval mode.
    with torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        outputs = worker(*(x.to(device) for x in inputs))
        value = loss(outputs, labels.to(device) if labels is not None else None, generator)
    if not torch.isfinite(value):
        raise PruningError(f"gradients need a finite loss, but on calibration data it is {value.item()}.")
    return value
