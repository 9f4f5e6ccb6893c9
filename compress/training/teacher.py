"""The original model as the teacher of its compressed successors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.data.splits import Split
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
        self._module = module.eval()
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

    def outputs(self, positions: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """The teacher's outputs (N, C) for the samples at ``positions`` (N,) of the split, whose inputs are given."""
        if self._table is not None:
            return self._table[positions].to(self._device)
        return self._ask(inputs)

    @torch.no_grad()
    def _ask(self, inputs: tuple[Tensor, ...]) -> Tensor:
        self._module.to(self._device)
        output: Tensor = self._module(*(x.to(self._device) for x in inputs))
        return output.detach()
