"""Codes: one sender is named, several are noticed."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.pruning.codes import NOBODY, SEVERAL, compatible, constant_weight, decode, digits


@pytest.mark.parametrize("count", [1, 2, 3, 20, 1000])
def test_codewords_differ_and_have_one_weight(count: int) -> None:
    code = constant_weight(count)
    assert code.shape[0] == count
    assert len({row.tobytes() for row in code}) == count
    assert len(set(code.sum(axis=1).tolist())) == 1


def test_the_code_is_as_short_as_it_can_be() -> None:
    assert constant_weight(20).shape[1] == 6
    assert comb(6, 3) == 20
    assert constant_weight(21).shape[1] == 7


@given(st.lists(st.integers(0, 199), max_size=6, unique=True))
def test_one_sender_is_named_and_several_are_noticed(senders: list[int]) -> None:
    code = constant_weight(200)
    seen = code[senders].any(axis=0, keepdims=True) if senders else np.zeros((1, code.shape[1]), dtype=bool)
    expected = NOBODY if not senders else senders[0] if len(senders) == 1 else SEVERAL
    assert decode(seen, code).tolist() == [expected]
    assert set(senders) <= set(np.flatnonzero(compatible(seen, code)[0])) or not senders


@given(st.integers(1, 500), st.booleans())
def test_digits_name_every_number(count: int, odd_first: bool) -> None:
    found = np.stack(digits(count, odd_first), axis=1)
    assert len(np.unique(found, axis=0)) == count


def test_aligned_blocks_share_their_high_digits() -> None:
    high = np.stack(digits(288, odd_first=False)[5:], axis=1)  # blocks of 32
    assert len(np.unique(high[:32], axis=0)) == 1
    high = np.stack(digits(96, odd_first=True)[1 + 3 :], axis=1)  # blocks of 3 * 8
    assert len(np.unique(high[:24], axis=0)) == 1
