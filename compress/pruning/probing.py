"""One forward pass with NaN in chosen channels, and where the NaN arrives.

Every operator with weights stops NaN: its output does not depend on its input here, so nothing is multiplied, and a
pass costs only what lies between the layers. All the rest (sums, concatenation, chunk, shuffle, views, attention,
squeeze-excite, whatever the user wrote) runs as it is, and carries the NaN along the channels.
"""

from __future__ import annotations

import contextlib
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from compress.errors import PruningError
from compress.pruning.operators import ARGUMENTS, Use, describe, macs_of, tensors_read
from compress.pruning.outputs import leaves as outputs_of
from compress.pruning.splits import Split, splits_of
from compress.pruning.tensors import in_place, nan_along, nan_like, operator_name, tensors_of, unguarded
from compress.pruning.tracking import VIEWS, Parameters, Tracker
from compress.pruning.values import LayerUse
from compress.quiet import quiet

Flags = NDArray[np.bool_]

# Functions of torch.nn.functional that are written in Python and call the operators that count.
_COMPOSITE = (
    *("embedding", "embedding_bag", "batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm"),
    "multi_head_attention_forward",
)
_NONE = np.zeros(1, dtype=np.bool_)
_SPLITTING = ("view", "reshape", "unflatten", "chunk", "tensor_split")
_PASSED_THROUGH = ("batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm", "prelu")


@dataclass
class Seen:
    """What the first pass finds out, in the order of the calls."""

    uses: list[Use | None] = field(default_factory=list)  # None: a call whose weights are no parameters
    shapes: list[list[tuple[int, ...]]] = field(default_factory=list)  # of the outputs of each use
    splits: list[list[Split]] = field(default_factory=list)
    raw: set[str] = field(default_factory=set)  # parameters that meet activations without an operator with weights
    layers: list[LayerUse] = field(default_factory=list)


@dataclass(frozen=True)
class Injection:
    """Which channels are NaN in a pass."""

    channels: Mapping[tuple[int, int], Flags]  # (use, port) -> (port size,)
    raw: Mapping[str, Tensor] = field(default_factory=dict)  # name -> the parameter with its NaN in it
    inputs: bool = False  # the floating-point inputs of the model are NaN


@dataclass(frozen=True)
class Arrivals:
    reads: list[list[Flags]]  # of each use: one (extent,) a tensor read
    splits: list[list[Flags]]  # of each splitting call, one an axis; empty unless asked for
    output: bool  # NaN reached an output of the model


class Prober:
    """Runs a module's own forward on example inputs; the module is left as it was."""

    def __init__(self, module: nn.Module, example_inputs: tuple[Any, ...], train: bool = False) -> None:
        self.module, self.inputs, self.train = module, example_inputs, train
        self.parameters = Parameters(module)
        self.passes = 0
        self._fills: dict[tuple[int, ...], Tensor] = {}
        self._memory: list[Any] | None = None
        self._known: set[int] = set()  # tensors that hold no NaN: remembered, parameters, inputs
        self._generator = torch.Generator().manual_seed(0)
        self.seen = self._discover()

    def _discover(self) -> Seen:
        batch = next((leaf.shape[0] for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor) and leaf.ndim), 1)
        mode = _Discovery(self.parameters, batch)
        try:
            with self._quiet():
                output = mode.run(self.module, self.inputs)
        except Exception as error:
            raise PruningError(
                f"{type(self.module).__name__} cannot run on the example inputs: {type(error).__name__}: {error}"
            ) from error
        if not any(True for _ in outputs_of(output)):
            raise PruningError(
                f"{type(self.module).__name__} returns {type(output).__name__}, in which no tensor is found: what "
                "reaches an output cannot be told. Return tensors, or a dict, tuple or dataclass of them."
            )
        self._static = {id(t) for t in (*tensors_of(self.inputs), *self.module.parameters(), *self.module.buffers())}
        return mode.seen

    def run(self, injection: Injection, splits: bool = False, remember: bool = False) -> Arrivals:
        """One pass.

        Args:
            injection: What is NaN.
            splits: Whether to look at `Seen.splits` too.
            remember: Take what no NaN goes into from memory instead of computing it: quick where few channels are NaN.
                NaN that is written into part of a tensor through a view of it is then lost; a full pass sees it.

        Raises:
            PruningError: the forward takes another path than at first.
        """
        if remember and self._memory is None:
            self._memory = []
            self.run(Injection({}))
        self.passes += 1
        mode = _Pass(self, injection, splits, self._memory if remember or self._memory == [] else None)
        try:
            with self._quiet():
                output = mode.run(self.module, nan_like(self.inputs) if injection.inputs else self.inputs)
        except PruningError:
            raise
        except Exception as error:
            raise PruningError(
                f"the forward of {type(self.module).__name__} does not run with NaN in it: {type(error).__name__}: "
                f"{next(iter(str(error).splitlines()), '')}. Take checks of values out of it in eval mode, or leave "
                "pruning out (--skip prune)."
            ) from error
        if self._memory is not None and not self._known:
            self._known = self._static | {id(t) for t in tensors_of(self._memory)}
        if mode.use != len(self.seen.uses):
            raise PruningError(
                f"the forward of {type(self.module).__name__} took another path: {mode.use} calls of layers instead of "
                f"{len(self.seen.uses)}. Its path must not depend on values."
            )
        leaves = [leaf for _, leaf in outputs_of(output) if leaf.is_floating_point()]
        return Arrivals(mode.reads, mode.splits, any(bool(leaf.isnan().any()) for leaf in leaves))

    @property
    def known(self) -> set[int]:
        """Ids of tensors that hold no NaN in a pass that remembers."""
        return self._known

    def fill(self, shape: tuple[int, ...]) -> Tensor:
        """Fresh finite values, all different: constants would make a hand-written variance zero."""
        if shape not in self._fills:
            self._fills[shape] = torch.rand(shape, generator=self._generator) + 0.5
        return self._fills[shape].clone()

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """The module's mode, random state and counters as they were; no fused paths that hide operators."""
        training = {id(part): part.training for part in self.module.modules()}
        buffers = [(b, b.clone()) for b in self.module.buffers()]
        # A forward may keep its state in attributes: the next pass must not find the NaN of this one there.
        state = [(part, dict(vars(part)), dict(part._buffers)) for part in self.module.modules()]
        fast, threads = torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()
        self.module.train(self.train)
        # Hundreds of short operators: one thread beats several that wait for each other.
        torch.set_num_threads(1)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), quiet():
                torch.manual_seed(0)
                yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.mha.set_fastpath_enabled(fast)
            for part, attributes, own in state:
                vars(part).clear()
                vars(part).update(attributes)
                part._buffers.clear()
                part._buffers.update(own)
                part.training = training[id(part)]
            for buffer, before in buffers:
                buffer.copy_(before)


class _Mode(TorchFunctionMode, ABC):
    """What both kinds of pass share: operators with weights go one way, reshapes another, the rest just runs."""

    def run(self, module: nn.Module, inputs: tuple[Any, ...]) -> object:
        with self:
            return module(*inputs)

    def __torch_function__(
        self, func: Any, types_: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, types.FunctionType) and func.__name__ in _COMPOSITE:
            with self:
                return unguarded(func)(*args, **kwargs)
        name = operator_name(func)
        if name in ARGUMENTS:
            return self.weighted(name, func, args, kwargs)
        if name in _SPLITTING:
            return self.splitting(func, args, kwargs)
        return self.other(name, func, args, kwargs)

    @abstractmethod
    def weighted(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of an operator that `compress.pruning.operators` knows."""

    @abstractmethod
    def splitting(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A reshape or a chunk."""

    @abstractmethod
    def other(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any other call."""


class _Discovery(_Mode):
    """The first pass, with the true values: which calls there are, what they read and write, and their shapes."""

    def __init__(self, parameters: Parameters, batch: int) -> None:
        super().__init__()
        self.seen, self._batch = Seen(), max(1, batch)
        self._track = Tracker(parameters)

    def weighted(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Described first: what an operator reads may be changed in place later.
        use = describe(name, args, kwargs, self._track)
        if use is not None:  # a parameter as data or initial state, not as weight
            self.seen.raw.update(n for t in tensors_read(name, args, kwargs) if (n := self._track.name(t)) is not None)
        output = func(*args, **kwargs) if use is not None else self._plain(func, args, kwargs)
        self.seen.uses.append(use)
        self.seen.shapes.append([tuple(t.shape) for t in tree_leaves(output)] if use is not None else [])
        if use is not None and use.writes:
            self.seen.layers.append(self._layer(name, use, args, kwargs, output))
        return output

    def _layer(self, name: str, use: Use, args: Any, kwargs: Any, output: Any) -> LayerUse:
        read = tensors_read(name, args, kwargs)
        source = read[0] if read else next(a for a in args if isinstance(a, Tensor) and not a.is_floating_point())
        made = tree_leaves(output)[0]
        return LayerUse(
            weight=use.weight,
            operator=name,
            input_shape=tuple(source.shape),
            output_shape=tuple(made.shape),
            weight_shape=tuple(self._track.parameters.tensors[use.weight].shape),
            macs=macs_of(name, args, kwargs, output) // self._batch,
            arguments=use.arguments,
        )

    def splitting(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = args[0] if args else kwargs["input"]
        before = tuple(source.shape)
        tracked = self._track.name(source) is not None
        output = self.other(operator_name(func), func, args, kwargs)
        self.seen.splits.append([] if tracked else splits_of(before, output, args, kwargs))
        return output

    def other(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in VIEWS and args and self._track.name(args[0]) is not None:
            output = func(*args, **kwargs)
            self._track.follow(func, args, kwargs, output)
            return output
        return self._plain(func, args, kwargs)

    def _plain(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            names = (self._track.name(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            self.seen.raw.update(name for name in names if name is not None)
        return output


class _Pass(_Mode):
    """A later pass: operators with weights return fresh values with NaN in the channels that were asked for."""

    def __init__(self, prober: Prober, injection: Injection, splits: bool, memory: list[Any] | None) -> None:
        super().__init__()
        self.prober, self.injection, self.want_splits = prober, injection, splits
        self._memory, self._filling, self._calls = memory, memory == [], 0
        self._fresh: dict[int, Tensor] = {}  # tensors of this pass, by id; others hold no NaN
        self._replaced: dict[int, Tensor] = {}  # id of a remembered tensor -> what an operator made of it in place
        self.use = self.split = 0
        self.reads: list[list[Flags]] = []
        self.splits: list[list[Flags]] = []
        self._raw = {id(prober.parameters.tensors[name]): tensor for name, tensor in injection.raw.items()}
        self._fresh.update((id(tensor), tensor) for tensor in injection.raw.values())

    def weighted(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number, self.use = self.use, self.use + 1
        if number >= len(self.prober.seen.uses):
            raise PruningError("the forward took another path than at first: its path must not depend on values.")
        use = self.prober.seen.uses[number]
        if use is None:
            self.reads.append([])
            return self.other(name, func, args, kwargs)
        swap = {**self._raw, **self._replaced}
        tensors = [swap.get(id(t), t) for t in tensors_read(name, args, kwargs)]
        self.reads.append([self._heard(t, read.axis) for t, read in zip(tensors, use.reads, strict=False)])
        if name in _PASSED_THROUGH:
            return self._recalled(lambda: tensors[0].clone(), self._may_hold(tensors[0]))
        asked = any(self.injection.channels.get((number, write.port), _NONE).any() for write in use.writes)
        return self._recalled(lambda: self._written(number, use), asked)

    def _written(self, number: int, use: Use) -> Any:
        outputs = [self.prober.fill(shape) for shape in self.prober.seen.shapes[number]]
        for write in use.writes:
            flags = self.injection.channels.get((number, write.port))
            if flags is not None and flags.any():
                where = torch.from_numpy(np.flatnonzero(flags[write.positions]))
                outputs[write.output].index_fill_(write.axis, where, float("nan"))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def splitting(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number, self.split = self.split, self.split + 1
        if self.want_splits and number < len(self.prober.seen.splits):
            found = self.prober.seen.splits[number]
            source = args[0] if args else kwargs["input"]
            self.splits.append([nan_along(source, split.axis) for split in found])
        return self.other("", func, args, kwargs)

    def other(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = list(tensors_of((args, kwargs))) if self._raw or self._remembering else []
        if any(id(leaf) in self._raw or id(leaf) in self._replaced for leaf in leaves):
            swap = {**self._raw, **self._replaced}
            args, kwargs = tree_map(lambda leaf: swap.get(id(leaf), leaf), (args, kwargs))
            leaves = list(tensors_of((args, kwargs)))
        if not self._remembering:
            return self._recalled(lambda: func(*args, **kwargs), True)
        fresh = any(self._may_hold(leaf) for leaf in leaves)
        if fresh and in_place(name) and not self._may_hold(args[0]):
            copy = args[0].clone()
            self._replaced[id(args[0])] = self._fresh[id(copy)] = copy
            args = (copy, *args[1:])
        return self._recalled(lambda: func(*args, **kwargs), fresh)

    @property
    def _remembering(self) -> bool:
        return self._memory is not None and not self._filling

    def _heard(self, tensor: Tensor, axis: int) -> Flags:
        return nan_along(tensor, axis) if self._may_hold(tensor) else np.zeros(tensor.shape[axis], dtype=np.bool_)

    def _may_hold(self, value: Any) -> bool:
        """Whether there may be NaN in it."""
        # What is neither of this pass nor remembered came from code that no mode sees, such as a scripted function.
        return not self._remembering or id(value) in self._fresh or id(value) not in self.prober.known

    def _recalled(self, compute: Callable[[], Any], needed: bool) -> Any:
        """The result of this call: computed, or what the same call gave when nothing was NaN."""
        number, self._calls = self._calls, self._calls + 1
        if self._memory is None:
            return compute()
        if self._filling:
            self._memory.append(compute())
            return self._memory[-1]
        if not needed:
            return self._memory[number]
        output = compute()
        self._fresh.update((id(leaf), leaf) for leaf in tensors_of(output))
        return output
