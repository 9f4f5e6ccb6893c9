"""The original model as the teacher of its compressed successors."""

from __future__ import annotations

import copy
import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from compress.data.splits import Split
from compress.models.state import save_state
from compress.values import Progress, silent

# 256 MiB of float32: above it the teacher is asked again at every step instead of remembered.
TABLE_LIMIT = 64 * 2**20


class Teacher:
    """The teacher's outputs for the samples of one split.

    The data sources are deterministic (no augmentation), so the teacher sees each sample once: its outputs are kept in
    a table (len(split), C), unless they would need more than ``TABLE_LIMIT`` elements.
    """

    def __init__(
        self,
        module: nn.Module,
        split: Split,
        *,
        device: str = "cpu",
        batch_size: int = 256,
        progress: Progress = silent,
    ) -> None:
        self._module: nn.Module | None = module.eval()
        self._device = device
        self._table: Tensor | None = None
        columns = self._ask(split.fetch(split.indices[:1])[0]).shape[1]
        if columns * len(split) <= TABLE_LIMIT:
            rows, done = [], 0
            for inputs, _ in split.batches(batch_size):
                rows.append(self._ask(inputs).cpu())
                done += len(rows[-1])
                progress("asking the original model", done, len(split))
            self._table = torch.cat(rows)
            self._module = None  # stages share this teacher for a whole run: its weights need no memory

    def outputs(self, positions: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """The teacher's outputs (N, C) for the samples at ``positions`` (N,) of the split, whose inputs are given."""
        if self._table is not None:
            return self._table[positions].to(self._device)
        return self._ask(inputs)

    @torch.no_grad()
    def _ask(self, inputs: tuple[Tensor, ...]) -> Tensor:
        assert self._module is not None  # the table has all answers
        self._module.to(self._device)
        output: Tensor = self._module(*(x.to(self._device) for x in inputs))
        return output.detach()


_LAST: WeakKeyDictionary[nn.Module, tuple[Split, str, str, Teacher]] = WeakKeyDictionary()


def teacher_of(module: nn.Module, split: Split, *, device: str = "cpu", progress: Progress = silent) -> Teacher:
    """The teacher that answers as ``module`` does now: the last one for it, where weights and split are the same.

    Every stage that trains has the same teacher, and asking it takes a sixth of the bare training steps of a CNN of
    228,010 parameters.
    """
    known, weights = _LAST.get(module), hashlib.sha256(save_state(module)).hexdigest()  # it can be trained meanwhile
    if known is not None and known[0] is split and known[1:3] == (device, weights):
        return known[3]
    teacher = Teacher(copy.deepcopy(module), split, device=device, progress=progress)
    _LAST[module] = split, device, weights, teacher
    return teacher
