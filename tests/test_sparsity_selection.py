"""Selection: exact, whatever the scores are, and bounded in what it holds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.selection import METHODS, agree, once
from compress.errors import SparsityError
from compress.sparsity import selection
from compress.sparsity.selection import Cut, Scores, kth_smallest, staying

COUNTS = (7, 500, 0, 1, 1500, 250)


def scores_of(tensors: list[Tensor]) -> list[Scores]:
    def opener(tensor: Tensor) -> Callable[[], Callable[[slice], Tensor]]:
        return lambda: lambda positions: tensor[positions]

    return [
        Scores(f"t{i}", len(t), opener(t), torch.float64 if t.dtype == torch.float64 else torch.float32, t.device)
        for i, t in enumerate(tensors)
    ]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of scores take the way that hundreds of millions take: many chunks, brackets that hold too many."""
    monkeypatch.setattr(selection, "CHUNK", {"cpu": 200})
    monkeypatch.setattr(selection, "SAMPLE", 100)
    monkeypatch.setattr(selection, "HELD", 150)


def gaussian(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, generator=generator).abs()


def mostly_zero(generator: torch.Generator, count: int) -> Tensor:
    values = torch.randn(count, generator=generator).abs()
    return values * (torch.rand(count, generator=generator) < 0.2)


def few_values(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(0, 4, (count,), generator=generator).float()


def periodic(generator: torch.Generator, count: int) -> Tensor:
    return torch.where(torch.arange(count) % 2 == 0, 0.0, 1.0) + torch.rand(count, generator=generator) * 1e-3


def many_scales(generator: torch.Generator, count: int) -> Tensor:
    return torch.exp(80 * (torch.rand(count, generator=generator) - 0.5))


def doubles(generator: torch.Generator, count: int) -> Tensor:
    return 1.0 + torch.rand(count, generator=generator, dtype=torch.float64) * 1e-12  # all the same in float32


def halves(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, generator=generator).abs().half()


def brains(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, generator=generator).abs().bfloat16()


KINDS = (gaussian, mostly_zero, few_values, periodic, many_scales, doubles, halves, brains)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), share=st.floats(0, 1), seed=st.integers(0, 50))
def test_what_goes_is_the_start_of_a_stable_sort(
    kind: Callable[[torch.Generator, int], Tensor], share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [kind(generator, count) for count in COUNTS]
    k = round(share * sum(COUNTS))
    cut = kth_smallest(scores_of(tensors), k)
    expected = torch.ones(sum(COUNTS), dtype=torch.bool)
    expected[torch.cat(tensors).double().argsort(stable=True)[:k]] = False
    masks = list(staying(scores_of(tensors), cut))
    assert torch.equal(torch.cat(masks), expected)
    assert cut.taken == tuple(int((~mask).sum()) for mask in masks)


def test_tensors_of_different_precision_are_ranked_together_exactly() -> None:
    low, high = torch.full((3000,), 1.0), torch.full((3000,), 1.0 + 1e-12, dtype=torch.float64)
    cut = kth_smallest(scores_of([high, low]), 3001)
    assert cut == Cut(1.0 + 1e-12, ties=(1, 0), taken=(1, 3000))


def test_nothing_goes_at_zero_and_everything_at_the_number_of_scores() -> None:
    tensors = [torch.rand(300), torch.rand(400)]
    assert all(bool(m.all()) for m in staying(scores_of(tensors), kth_smallest(scores_of(tensors), 0)))
    assert not any(bool(m.any()) for m in staying(scores_of(tensors), kth_smallest(scores_of(tensors), 700)))


@pytest.mark.parametrize("k", [-1, 701])
def test_more_than_there_is_cannot_be_selected(k: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.700"):
        kth_smallest(scores_of([torch.rand(700)]), k)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_without_an_order_is_refused_and_its_tensor_named(value: float) -> None:
    tensors = [torch.rand(400), torch.rand(400)]
    tensors[1][399] = value
    with pytest.raises(SparsityError, match=r"t1: .* infinite or NaN"):
        kth_smallest(scores_of(tensors), 10)


def test_a_sample_that_misleads_costs_passes_and_not_exactness() -> None:
    # What is sampled is large, everything else is small, and neither the first nor the next strides see it.
    values, seen = torch.linspace(0, 1, 4900), 0

    def opened() -> Callable[[slice], Tensor]:
        def score(positions: slice) -> Tensor:
            nonlocal seen
            if positions.step is not None:
                seen += 1
                return torch.full((100,), 9.0)
            return values[positions]

        return score

    cut = kth_smallest([Scores("t", 4900, opened, torch.float32, torch.device("cpu"))], 1234)
    assert cut.value == values[1233].item()
    assert seen == selection.TRUST


def test_the_passes_hold_no_more_scores_than_their_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    tally = selection._tally

    def watched(*args: object) -> selection._Tally:
        result = tally(*args)  # type: ignore[arg-type]
        held.append(len(result.held))
        return result

    monkeypatch.setattr(selection, "_tally", watched)
    kth_smallest(scores_of([torch.rand(5000) for _ in range(3)]), 7000)
    assert held
    assert max(sum(held[i : i + 3]) for i in range(0, len(held), 3)) <= selection.HELD


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_benchmark_finds_the_same_zeros_for_both_methods(tmp_path: Path) -> None:
    zeros = []
    for method in METHODS:
        found = once(method, 20_000, 0.7, tmp_path / method)
        zeros.append(np.unpackbits(np.frombuffer((tmp_path / method).read_bytes(), np.uint8)))
        assert found["weights"] == 20_000
        assert int(zeros[-1].sum()) == 14_000
    assert agree(20_000, *zeros)
    assert not agree(20_000, zeros[0], np.roll(zeros[0], 1))
