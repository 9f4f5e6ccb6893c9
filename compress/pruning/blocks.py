"""Residual blocks: finding those that add to what they are given, leaving one out, and which is missed least.

A block y = x + f(x), left out, is y = x: the same cut as of channels, of all that f adds at once.
What narrowing cannot save (the nodes between the layers, the call of each) leaves with it, which is most of the latency
of small transformers. Leaving whole blocks out goes back to Huang et al. 2016, "Deep Networks with Stochastic Depth";
choosing those that the outputs miss least to Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper
Layers".
"""

from __future__ import annotations

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.data.splits import Split
from compress.pruning.exactness import evaluate, signature
from compress.pruning.values import Kept
from compress.training.finetune import log_scores

logger = logging.getLogger(__name__)

# What a residual block may do to its sum and still be one: to what a block like it returned these do nothing (ReLUs),
# or little (a normalisation of what is normalised).
_PASSING = frozenset(
    {"aten::relu", "aten::hardtanh", "aten::clone", "aten::dropout", "aten::alias", "aten::detach"}
    | {"aten::native_layer_norm", "aten::_fused_rms_norm", "aten::rms_norm"}
)
_ADDING = frozenset({"aten::add", "aten::sub"})
_BATCH = 64


class Skipped(nn.Module):
    """In the place of a block that was left out: returns its first argument."""

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        return x


def residual_blocks(module: nn.Module, inputs: Sequence[Any]) -> tuple[str, ...]:
    """The names of the submodules that can be left out: the smallest that return their input plus something.

    Found in one forward pass, not by class or name: a submodule that is called once, takes a tensor first and returns
    one of the same shape and dtype that was made of it by additions alone (and by ReLUs and normalisations of them, as
    in post-norm transformers).

    Args:
        module: Left as it was.
        inputs: Positional arguments of its forward.

    Returns:
        In the order of their calls; none where the forward has no submodules of its own (a traced one).
    """
    watched = copy.deepcopy(module)
    names = {layer: name for name, layer in watched.named_modules() if _can_be_watched(name, layer)}
    calls: list[tuple[str, bool]] = []
    with _Sums() as sums:
        for layer, name in names.items():
            layer.register_forward_hook(_noting(name, calls, sums))
        evaluate(watched, inputs)
    times = Counter(name for name, _ in calls)
    found = [name for name, residual in calls if residual and times[name] == 1]
    smallest = [name for name in found if not any(within(other, [name]) for other in found)]
    expected = signature(evaluate(module, inputs))
    return tuple(name for name in smallest if _signature_without(module, name, inputs) == expected)


def _signature_without(module: nn.Module, block: str, inputs: Sequence[Any]) -> list[str] | None:
    """None where the forward pass needs the block: it reads a weight of it, say."""
    try:
        return signature(evaluate(skip(module, [block]), inputs))
    except Exception as error:  # the user's forward can raise anything
        logger.debug("%s cannot be left out: %s", block, error)
        return None


def removable(blocks: Sequence[str], module: nn.Module, keep: Iterable[str]) -> list[str]:
    """The blocks none of whose parameters is named: by its own name, its layer's, or a pattern (fnmatch)."""
    names = [name for name, _ in module.named_parameters()]
    held = [name for key in keep for name in names if fnmatch(name, key) or within(name, [key])]
    return [block for block in blocks if not any(within(name, [block]) for name in held)]


def skip(module: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of ``module`` without the named blocks: what came to them goes on as it is.

    Raises:
        AttributeError: there is no such block.
    """
    shorter = copy.deepcopy(module)
    for name in names:
        shorter.get_submodule(name)
        parent, _, last = name.rpartition(".")
        setattr(shorter.get_submodule(parent), last, Skipped())
    return shorter


def without(kept: Kept, names: Iterable[str]) -> Kept:
    """What is kept of the tensors outside the named blocks."""
    blocks = tuple(names)
    return {name: axes for name, axes in kept.items() if not within(name, blocks)}


def within(name: str, blocks: Iterable[str]) -> bool:
    """Whether a layer or a tensor is one of a block's."""
    return any(name.startswith(f"{block}.") for block in blocks)


class Answers:
    """The original's answers to some samples."""

    def __init__(self, original: nn.Module, split: Split) -> None:
        self._samples = [inputs for inputs, _ in split.batches(_BATCH)]
        self._answers = [evaluate(original, inputs) for inputs in self._samples]

    def divergence(self, module: nn.Module) -> float:
        """Mean Kullback-Leibler divergence of a module's answers from them, in nats; untrained ones can be compared."""
        lost, count = 0.0, 0
        for inputs, answer in zip(self._samples, self._answers, strict=True):
            log_p, log_q = (F.log_softmax(log_scores(x, answer), dim=1) for x in (answer, evaluate(module, inputs)))
            lost += F.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
            count += len(answer)
        return lost / count


def least_missed(saves: Mapping[str, float], lost: Mapping[str, float], wanted: float, most: int) -> list[str]:
    """The blocks that are missed least for what they save, until they save about what is wanted.

    Args:
        saves: Block -> what leaving it out saves, above 0, in any unit.
        lost: Block -> the divergence where it alone is left out.
        wanted: In the unit of ``saves``.
        most: Blocks at most.
    """
    chosen: list[str] = []
    for name in sorted(saves, key=lambda name: lost[name] / saves[name])[:most]:
        if chosen and sum(saves[one] for one in chosen) + saves[name] / 2 >= wanted:
            break
        chosen.append(name)
    return chosen


def _can_be_watched(name: str, layer: nn.Module) -> bool:
    """A submodule with weights, not the model itself, that takes hooks."""
    return bool(name) and not isinstance(layer, torch.jit.ScriptModule) and any(True for _ in layer.parameters())


def _noting(name: str, calls: list[tuple[str, bool]], sums: _Sums) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """Looks as soon as the call is over: its caller may add to the output in place."""

    def note(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        calls.append((name, bool(given) and sums.reaches(made, given[0])))

    return note


class _Sums(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which tensors are sums that others of the same shape went into."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._terms: dict[int, set[tuple[int, bool]]] = defaultdict(set)  # and whether they were added to something
        self._alive: list[Tensor] = []  # an id tells a tensor only while that is there

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        name = str(func._schema.name).rstrip("_")
        made = results[0] if isinstance(results, tuple) and results else results  # of a normalisation, its statistics
        if isinstance(made, Tensor) and (name in _ADDING or name in _PASSING):
            terms = args[:2] if name == "aten::add" else args[:1]
            same = [term for term in terms if isinstance(term, Tensor) and term.shape == made.shape]
            self._terms[id(made)] |= {(id(term), name in _ADDING) for term in same}
            self._alive += [made, *same]
        return results

    def reaches(self, made: Any, given: Any) -> bool:
        """Whether ``made`` is ``given`` plus something."""
        if not isinstance(made, Tensor) or not isinstance(given, Tensor):
            return False
        if made.shape != given.shape or made.dtype != given.dtype:
            return False
        seen: set[tuple[int, bool]] = set()
        waiting = list(self._terms[id(made)])
        while waiting:
            number, summed = waiting.pop()
            if number == id(given) and summed:
                return True
            if number != id(given) and (number, summed) not in seen:
                seen.add((number, summed))
                waiting += [(term, summed or added) for term, added in self._terms[number]]
        return False
