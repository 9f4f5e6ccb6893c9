"""Channel groups: which channels of which layers can only leave together, found by running the model's own forward.

NaN goes into chosen channels of the layers' outputs, and where it arrives at the inputs of others tells what is coupled
(`compress.pruning.probing`). The search has four steps:

1. All layers at once, with a code over channels and a code over layers: a position that hears from one sender is done.
2. One pass for each layer that may be heard where several are: who is in the sums. Where all senders of a position have
   the same channel number (a residual sum), it is done.
3. What is left (several channels of one layer at one position: attention heads, shuffles) is decoded layer by layer.
4. The proof: a code over the groups found so far, all layers at once. Every position must hear its own group and no
   other, or what it hears is frozen. So a coupling that the steps above missed cannot stay unseen.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from compress.errors import PruningError
from compress.pruning.members import collect
from compress.pruning.probing import Prober
from compress.pruning.search import UNPROVED, Search
from compress.pruning.tracing import two_samples
from compress.pruning.values import ChannelGroup, LayerUse
from compress.values import Progress, silent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Structure:
    """What probing found out about a module."""

    groups: list[ChannelGroup]
    layers: list[LayerUse]
    passes: int


def channel_groups(module: nn.Module, example_inputs: Any, progress: Progress = silent) -> list[ChannelGroup]:
    """The channels of a module that can only leave together.

    The module's own forward is run on the example inputs, some hundred times, without computing its layers: there are
    no rules for the operators between them, and none for the user's code. The module is left as it was.

    Args:
        module: Any module whose path through its forward does not depend on values.
        example_inputs: A tensor or a tuple of tensors, as the forward takes them; a batch of one is enough.
        progress: Told about the passes.

    Returns:
        One group for each set of layers that makes channels together, in the order of the forward; those of which
        nothing can leave have the reason in ``frozen``.

    Raises:
        PruningError: the module does not run on these inputs, or its path depends on values.
    """
    return analyse(module, example_inputs, progress).groups


def analyse(module: nn.Module, example_inputs: Any, progress: Progress = silent) -> Structure:
    """`channel_groups` with the layers' calls and the number of passes that it took."""
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    copied, inputs = _for_probing(module, inputs)
    search = _searched(copied, inputs, progress, remember=True)
    if UNPROVED in search.frozen:  # what is remembered can hide NaN that was written in ways of the user's own
        search = _searched(copied, inputs, progress, remember=False)
    groups = collect(search)
    logger.info("%d groups in %d passes", len(groups), search.prober.passes)
    return Structure(groups, search.prober.seen.layers, search.prober.passes)


def _for_probing(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy in float32 on the CPU, whatever the module is in: a forward may change its buffers and parameters."""
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    try:
        copied = copy.deepcopy(module).cpu().float()
    except Exception as error:
        raise PruningError(
            f"{type(module).__name__} cannot be copied: {error}. Remove tensors that it keeps from earlier forwards."
        ) from error

    def plain(x: Tensor) -> Tensor:
        return x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu()

    return copied, tree_map_only(Tensor, plain, inputs)


def _searched(module: nn.Module, inputs: tuple[Any, ...], progress: Progress, remember: bool) -> Search:
    search = Search(_prober(module, inputs), progress, remember)
    search.run()
    return search


def _prober(module: nn.Module, inputs: tuple[Any, ...]) -> Prober:
    """In eval mode, or in train mode where that runs layers that eval leaves out: auxiliary heads."""
    prober = Prober(module, inputs)
    used = {use.weight for use in prober.seen.uses if use is not None}
    idle = {n for n, p in module.named_parameters() if n.endswith("weight") and p.ndim > 1} - used - prober.seen.raw
    if idle:
        try:
            training = Prober(module, two_samples(inputs), train=True)  # one has no variance to normalise by
        except Exception as error:
            logger.info("some layers are idle in eval mode, and train mode does not run: %s", error)
            return prober
        if used < {use.weight for use in training.seen.uses if use is not None}:
            return training
    return prober
