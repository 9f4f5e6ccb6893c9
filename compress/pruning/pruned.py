"""`prune`: choose how many channels of each group leave, and which, and cut them out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import lcm
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from compress.data.splits import Split
from compress.errors import PruningError
from compress.pruning import saving
from compress.pruning.allocation import Allocation, Scores, ranked, to_cost, uniform
from compress.pruning.cost import CostModel
from compress.pruning.evidence import Evidence, from_weights, gather
from compress.pruning.groups import Structure, analyse
from compress.pruning.importance import NEEDS_DATA, scores
from compress.pruning.lagrangian import knapsack
from compress.pruning.latency import LatencyModel, channel_block, measure_latency
from compress.pruning.rewriting import Traces
from compress.pruning.surgery import cut, kept_of
from compress.pruning.values import ChannelGroup, Kept
from compress.values import Progress, silent

logger = logging.getLogger(__name__)

Scope = Literal["uniform", "global"]
Objective = Literal["latency", "macs", "parameters"]

_OBJECTIVES: Mapping[str, Objective] = {"macs": "macs", "parameters": "parameters", "speedup": "latency"}


@dataclass(frozen=True)
class PrunedModel:
    """A module with fewer channels, and what it kept of the original."""

    module: nn.Module  # the user's class where its forward still runs, else a `TracedModule`
    kept: Kept  # parameter or buffer name -> axis -> kept indices, ascending; only what lost something
    groups: tuple[ChannelGroup, ...]  # of the original; those whose cut failed are frozen with the reason
    widths: Mapping[str, int]  # group name -> channels left, of every group that is not frozen

    def save(self, directory: Path) -> None:
        """Write the weights (safetensors) and ``kept`` (JSON) to a directory. See `load_pruned`."""
        saving.save(self.module, self.kept, directory)


def load_pruned(original: nn.Module, directory: Path, example_inputs: Any) -> nn.Module:
    """The module that `PrunedModel.save` wrote, rebuilt from the original class.

    Args:
        original: The module as it was before pruning; its values do not matter, and it stays as it is.
        directory: What was given to `PrunedModel.save`.
        example_inputs: As for `prune`.

    Raises:
        PruningError, ModelError: the files are damaged or belong to another model.
    """
    return saving.load(original, directory, as_tuple(example_inputs))


def prune(
    module: nn.Module,
    example_inputs: Any,
    ratio: float | None = None,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    speedup: float | None = None,
    scope: Scope = "uniform",
    importance: str = "lamp",
    floor: float = 0.1,
    round_to: int = 8,
    keep: Sequence[str] = (),
    data: Split | None = None,
    structure: Structure | None = None,
    latency: LatencyModel | None = None,
    cache: Path | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> PrunedModel:
    """Cut channels out of a module. One of ``ratio``, ``macs``, ``parameters`` and ``speedup`` says how much.

    Nothing is trained here: fine-tune what comes back. The result was run, its outputs have the signature of the
    original's, and it computes what the original computes when nothing reads the removed channels (a normalisation
    over channels takes its statistics over those that are left). A group whose cut does not pass that test is left
    whole, with the reason in ``PrunedModel.groups``.

    Args:
        module: Left as it was.
        example_inputs: A tensor or a tuple of tensors, as the forward takes them.
        ratio: Share 0..1 of the channels that leave, of every group or (``scope="global"``) of all together.
        macs: Share 0..1 of the multiply-accumulates that stays at most.
        parameters: Share 0..1 of the parameters that stays at most.
        speedup: At least 1: how many times faster the layers with weights become in ONNX Runtime on this CPU. They
            are timed alone at several widths, and the widths chosen by a knapsack.
        importance: A key of `compress.pruning.IMPORTANCES`; taylor and fisher need ``data``.
        floor: Share 0..1 of its channels that every group keeps at least, but for a uniform ratio.
        round_to: Kept counts are multiples of it where a group is wide enough: kernels work in blocks. 1: any count.
        keep: Patterns (fnmatch) of group or parameter names that stay whole.
        data: Calibration samples.
        structure: What `analyse` found, where it is known already.
        latency: What `measure_latency` found, where it is known already; else its ``cache`` file and ``threads``.

    Raises:
        PruningError: nothing can be cut, or the target is out of reach; says what is.
    """
    inputs = as_tuple(example_inputs)
    if scope not in get_args(Scope):
        raise PruningError(f"scope={scope!r} must be one of {', '.join(get_args(Scope))}.")
    name, amount = _one_of(ratio=ratio, macs=macs, parameters=parameters, speedup=speedup)
    found = structure or analyse(module, inputs, progress)
    groups = held(found.groups, keep)
    if all(group.frozen for group in groups):
        raise PruningError(f"{type(module).__name__} has no channels that can leave; `compress inspect` tells why.")
    ranking = scores(groups, evidence_for(module, groups, importance, data, seed=seed, progress=progress), importance)
    if name == "ratio" and scope == "uniform":
        allocation = uniform(groups, ranking, amount, round_to)
    elif name == "ratio":
        allocation = ranked(groups, ranking, amount, floor, round_to)
    else:
        found = replace(found, groups=groups)
        if name == "speedup" and latency is None:
            latency = layer_latency(module, found, floor=floor, cache=cache, threads=threads, progress=progress)
        budget = Budget(module, found, ranking, _OBJECTIVES[name], latency)
        allocation = budget.allocate(1 / amount if name == "speedup" else amount, floor, round_to)
    return cut_what_can(module, groups, allocation, inputs)


def _one_of(**amounts: float | None) -> tuple[str, float]:
    """The one amount that was given, within its range."""
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(given) != 1:
        found = ", ".join(f"{n}={v}" for n, v in given.items()) or "none of them"
        raise PruningError(f"give one of ratio, macs, parameters and speedup; found {found}.")
    ((name, value),) = given.items()
    if name == "speedup" and value < 1:
        raise PruningError(f"speedup={value} must be at least 1: 3 means a third of the time.")
    return name, value


@dataclass(frozen=True)
class Budget:
    """What widths cost, in the unit of an objective, and the widths that lose least importance at a cost."""

    module: nn.Module
    structure: Structure
    ranking: Scores
    objective: Objective = "macs"
    latency: LatencyModel | None = None  # for the objective "latency"

    def allocate(self, share: float, floor: float = 0.1, round_to: int = 8) -> Allocation:
        """Kept channels of each group so that at most ``share`` (0..1) of the whole cost stays.

        Under latency, ``round_to`` grows to a multiple of the processor's `channel_block`, and widths below it are
        free: fewer channels to read always save time, fewer than a block to write save none.

        Raises:
            PruningError: it cannot be had with this floor.
        """
        if not 0 < share <= 1:
            raise PruningError(f"a share of {share} of the {self.objective} was asked for: it must be within 0..1.")
        groups = self.structure.groups
        if self.objective == "latency":
            if self.latency is None:
                raise PruningError("a latency budget needs measured layers: see measure_latency.")
            target = share * self.latency.milliseconds({})
            block = round_to if round_to == 1 else lcm(round_to, channel_block())
            return knapsack(groups, self.ranking, self.latency, target, floor=floor, round_to=block, narrow=True)
        model = CostModel(groups, self.structure.layers, shapes_of(self.module))
        cost = model.macs if self.objective == "macs" else model.parameters
        return to_cost(groups, self.ranking, cost, share * cost({}), floor=floor, round_to=round_to)


def cut_what_can(
    module: nn.Module, groups: Sequence[ChannelGroup], allocation: Allocation, inputs: tuple[Any, ...]
) -> PrunedModel:
    """Cut as allocated; groups that keep the cut from passing its test are found by bisection and left whole.

    Raises:
        PruningError: no group can be cut.
    """
    narrower = [g for g in groups if g.name in allocation and len(allocation[g.name]) < g.channels]
    waiting = [narrower] if narrower else []
    accepted: list[ChannelGroup] = []
    if not narrower:
        logger.warning("nothing leaves %s: ask for more, or for a smaller round_to.", type(module).__name__)
    done: tuple[nn.Module, Kept] = (copy.deepcopy(module), {})
    refused: dict[str, str] = {}
    traces: Traces = {}
    while waiting:
        batch = waiting.pop(0)
        kept = kept_of(module, groups, {g.name: allocation[g.name] for g in (*accepted, *batch)})
        try:
            done = (cut(module, groups, kept, inputs, traces=traces), kept)
            accepted += batch
        except PruningError as error:
            if len(batch) == 1:
                logger.warning("%s is left whole: %s", batch[0].name, error)
                refused[batch[0].name] = f"its cut was refused: {error}"
            else:
                middle = len(batch) // 2
                waiting[:0] = [batch[:middle], batch[middle:]]
    if narrower and not accepted:
        raise PruningError(f"no group of {type(module).__name__} can be cut. {next(iter(refused.values()))}")
    told = tuple(replace(g, frozen=refused[g.name]) if g.name in refused else g for g in groups)
    names = {g.name for g in accepted}
    widths = {g.name: len(allocation[g.name]) if g.name in names else g.channels for g in told if g.frozen is None}
    return PrunedModel(done[0], done[1], told, widths)


def held(groups: Sequence[ChannelGroup], keep: Sequence[str]) -> list[ChannelGroup]:
    """The groups, those that a pattern names frozen.

    Raises:
        PruningError: a pattern names nothing.
    """

    def named(group: ChannelGroup, pattern: str) -> bool:
        return fnmatch(group.name, pattern) or any(fnmatch(m.name, pattern) for m in group.members)

    for pattern in keep:
        if not any(named(group, pattern) for group in groups):
            names = ", ".join(group.name for group in groups[:8])
            raise PruningError(f"keep={pattern!r} names no channel group and no parameter of one; groups are {names} …")
    return [
        replace(g, frozen=g.frozen or "kept by an option") if any(named(g, pattern) for pattern in keep) else g
        for g in groups
    ]


def evidence_for(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    importance: str,
    data: Split | None,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> Evidence:
    """What ``importance`` looks at: gradients on ``data`` only where it needs them."""
    if importance in NEEDS_DATA and data is not None:
        return gather(module, groups, data, seed=seed, device=device, progress=progress)
    return from_weights(module, seed)


def layer_latency(
    module: nn.Module,
    structure: Structure,
    *,
    floor: float,
    cache: Path | None,
    threads: int = 1,
    progress: Progress = silent,
) -> LatencyModel:
    """`measure_latency` for a structure, at the widths that `Budget.allocate` chooses from."""
    return measure_latency(
        structure.groups,
        structure.layers,
        shapes_of(module),
        threads=threads,
        floor=floor,
        block=channel_block(),
        cache=cache,
        progress=progress,
    )


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def compose(first: Kept, second: Kept) -> dict[str, dict[int, Tensor]]:
    """What two cuts, one after the other, kept of the original."""
    result = {name: dict(axes) for name, axes in first.items()}
    for name, axes in second.items():
        for axis, index in axes.items():
            before = result.setdefault(name, {}).get(axis)
            result[name][axis] = index if before is None else before[index]
    return result
