"""The exact k-th smallest of scores that are spread over many tensors, in memory that does not grow with them.

A strided sample brackets the k-th score; one pass over cache-sized chunks counts what lies below the bracket and holds
what lies in it, and the k-th is selected among those. A bracket that missed, or that holds too many, is narrowed and
the pass repeated: the sample decides how many passes it takes (nearly always one), never what is found.

Scores are never negative, so that they order as the bits of their floats do: all comparisons are of integers, exact
for every dtype, and infinity and NaN lie above every finite score.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import SparsityError

CHUNK = {"cpu": 1 << 17}  # scores at a time: half a MiB of float32, within the L2 cache
ELSEWHERE = 1 << 24  # where a kernel launch costs more than the cache gains
SAMPLE = 1 << 17  # scores that bracket the k-th: four standard deviations of its rank are within 1.1 % of all scores
HELD = 1 << 21  # scores of the bracket held at most
TRUST = 4  # brackets from a sample; the next ones halve the range of bits, which ends whatever the scores are
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}

# Flat positions -> their scores: what abs() gives, >= 0 or NaN, so that the sign bit is never set.
Opened = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Scores:
    """One score for each weight of one tensor, computed where they are asked for."""

    name: str  # of the parameter, for errors
    count: int
    open: Callable[[], Opened]  # called once a pass: what it prepares lives no longer than the pass over this tensor
    dtype: torch.dtype  # of the scores: float32 or float64; narrower ones are widened
    device: torch.device


@dataclass(frozen=True)
class Cut:
    """The k smallest scores: all those below ``value``, and of those equal to it the first ``ties`` of each tensor."""

    value: float
    ties: tuple[int, ...]  # one a tensor, earlier tensors first
    taken: tuple[int, ...]  # how many of each tensor's scores are among the k smallest, ties included


@dataclass(frozen=True)
class _Tally:
    below: int  # scores below the bracket
    inside: int  # scores in it, its ends included
    held: Tensor  # (inside,) their bits on the CPU; empty where they are too many or all equal


def kth_smallest(tensors: Sequence[Scores], k: int) -> Cut:
    """Select the k-th smallest of all scores together, ties broken by position: first tensor first, in flat order.

    Args:
        k: 0 <= k <= number of scores; with 0 nothing is below the cut.

    Raises:
        SparsityError: a score is infinite or NaN; names its tensor.
    """
    total = sum(t.count for t in tensors)
    if not 0 <= k <= total:
        raise ValueError(f"k={k} is not within 0..{total}, the number of scores")
    if k == 0:
        return Cut(0.0, (0,) * len(tensors), (0,) * len(tensors))
    dtype = _common(tensors)
    low, high = 0, _bits(math.inf, dtype)
    before, among = 0, total  # scores below low, and within low..high
    for attempt in itertools.count():
        first, last = _bracket(tensors, (k - before) / among, low, high, among, attempt)
        tallies = _survey(tensors, first, last)
        below, inside = sum(t.below for t in tallies), sum(t.inside for t in tallies)
        if below < k <= below + inside and (first == last or inside <= HELD):
            break
        if k <= below:
            high, among = first - 1, below - before
        elif k > below + inside:
            low, before, among = last + 1, below + inside, before + among - below - inside
        else:
            low, high, before, among = first, last, below, inside
    return _cut(tallies, k, first, last, dtype)


def staying(tensors: Sequence[Scores], cut: Cut) -> Iterator[Tensor]:
    """For each tensor a mask (count,), True where its score is not among the k smallest that ``cut`` tells."""
    dtype = _common(tensors)
    value = _bits(cut.value, dtype)
    for tensor, ties in zip(tensors, cut.ties, strict=True):
        mask = torch.empty(tensor.count, dtype=torch.bool, device=tensor.device)
        left = ties
        for start, bits in _chunks(tensor, dtype):
            part = torch.ge(bits, value, out=mask[start : start + len(bits)])
            if left:
                equal = (bits == value).nonzero().squeeze(1)[:left]
                part[equal] = False
                left -= len(equal)
        yield mask


def not_finite(name: str) -> SparsityError:
    return SparsityError(
        f"{name}: a weight, or what scores it, is infinite or NaN, so that the weights have no order. "
        "Load a checkpoint from before the training diverged."
    )


def _bracket(tensors: Sequence[Scores], share: float, low: int, high: int, among: int, attempt: int) -> tuple[int, int]:
    """Bits between which the score lies that has a ``share`` of the ``among`` scores in low..high below it."""
    if among <= SAMPLE:
        return low, high
    sample = _sample(tensors, low, high, attempt) if attempt < TRUST else torch.empty(0)
    if not len(sample):
        return low, (low + high) // 2
    deviation = math.sqrt(len(sample) * share * (1 - share))
    first = math.floor(share * len(sample) - 4 * deviation)  # one-based ranks, as kthvalue has them
    last = math.ceil(share * len(sample) + 4 * deviation) + 1
    return (
        int(sample.kthvalue(first).values) if first >= 1 else low,
        int(sample.kthvalue(last).values) if last <= len(sample) else high,
    )


def _sample(tensors: Sequence[Scores], low: int, high: int, attempt: int) -> Tensor:
    """Bits of about SAMPLE scores evenly apart, those within low..high: (samples,)."""
    dtype = _common(tensors)
    # Odd, and another one each time: rows have even lengths, and a stride that divides them sees the same columns.
    stride = (sum(t.count for t in tensors) // SAMPLE | 1) + 2 * attempt
    parts, offset = [], 0
    for tensor in tensors:
        if offset < tensor.count:
            scores = tensor.open()(slice(offset, tensor.count, stride))
            bits = scores.to(dtype).view(BITS[dtype]).cpu()
            parts.append(bits[(bits >= low) & (bits <= high)])
        offset = (offset - tensor.count) % stride
    return torch.cat(parts)


def _survey(tensors: Sequence[Scores], first: int, last: int) -> list[_Tally]:
    """One pass over all scores; holds at most HELD of them."""
    dtype, room, tallies = _common(tensors), HELD if first < last else 0, []
    for tensor in tensors:
        tally = _tally(tensor, dtype, first, last, room)
        room = max(0, room - tally.inside)
        tallies.append(tally)
    return tallies


def _tally(tensor: Scores, dtype: torch.dtype, first: int, last: int, room: int) -> _Tally:
    below, inside, held = 0, 0, []
    limit = _bits(math.inf, dtype)
    for _, bits in _chunks(tensor, dtype):
        if int(bits.amax()) >= limit:
            raise not_finite(tensor.name)
        less = bits < first
        within = (bits <= last).logical_xor_(less)
        below += int(torch.count_nonzero(less))
        found = int(torch.count_nonzero(within))
        inside += found
        if found and inside <= room:
            held.append(bits[within.nonzero().squeeze(1)].cpu())
    return _Tally(below, inside, torch.cat(held) if held else torch.empty(0, dtype=BITS[dtype]))


def _cut(tallies: Sequence[_Tally], k: int, first: int, last: int, dtype: torch.dtype) -> Cut:
    """The cut, from a pass whose bracket holds the k-th score."""
    if first == last:
        value = first
        smaller, equal = [t.below for t in tallies], [t.inside for t in tallies]
    else:
        value = int(torch.cat([t.held for t in tallies]).kthvalue(k - sum(t.below for t in tallies)).values)
        smaller = [t.below + int(torch.count_nonzero(t.held < value)) for t in tallies]
        equal = [int(torch.count_nonzero(t.held == value)) for t in tallies]
    left, ties = k - sum(smaller), []
    for count in equal:
        ties.append(min(left, count))
        left -= ties[-1]
    taken = tuple(a + b for a, b in zip(smaller, ties, strict=True))
    return Cut(torch.tensor(value, dtype=BITS[dtype]).view(dtype).item(), tuple(ties), taken)


def _chunks(tensor: Scores, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Where each chunk starts, and the bits of its scores."""
    opened, size = tensor.open(), CHUNK.get(tensor.device.type, ELSEWHERE)
    for start in range(0, tensor.count, size):
        scores = opened(slice(start, min(start + size, tensor.count)))
        yield start, scores.to(dtype).view(BITS[dtype])


def _common(tensors: Sequence[Scores]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _bits(value: float, dtype: torch.dtype) -> int:
    return int(torch.tensor(value, dtype=dtype).view(BITS[dtype]))
