"""Which sample goes to which split, and the options that say so."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.options import DataOptions
from compress.data.partition import Pools, partition
from compress.errors import DataError, RecipeError

SHARES = st.floats(0.01, 0.49)


@given(
    pools=st.builds(Pools, st.integers(3, 400), st.integers(0, 50), st.integers(0, 50)),
    validation=SHARES,
    test=SHARES,
    seed=st.integers(0, 2**32 - 1),
)
def test_splits_are_disjoint_and_cover_every_sample(pools: Pools, validation: float, test: float, seed: int) -> None:
    options = DataOptions(validation=validation, test=test, split_seed=seed)
    parts = partition("any", pools, options)
    dealt = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(dealt) == list(range(pools.train + pools.validation + pools.test))
    assert min(len(parts.train), len(parts.validation), len(parts.test)) > 0


@given(count=st.integers(10, 300), calibration=st.integers(1, 400), limit=st.integers(1, 400))
def test_calibration_is_the_head_of_a_limited_train(count: int, calibration: int, limit: int) -> None:
    whole = partition("any", Pools(count), DataOptions())
    parts = partition("any", Pools(count), DataOptions(limit=limit, calibration=calibration))
    assert list(parts.train) == list(whole.train[:limit])
    assert list(parts.calibration) == list(parts.train[:calibration])
    assert list(parts.validation) == list(whole.validation)
    assert list(parts.test) == list(whole.test)


def test_without_held_out_samples_the_shares_are_70_15_15() -> None:
    parts = partition("any", Pools(1000), DataOptions())
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (700, 150, 150)


def test_an_own_test_split_is_kept_as_it_is() -> None:
    parts = partition("any", Pools(100, test=20), DataOptions())
    assert (len(parts.train), len(parts.validation)) == (90, 10)
    assert list(parts.test) == list(range(100, 120))


def test_a_lone_validation_split_is_what_the_model_has_not_seen_and_becomes_test() -> None:
    parts = partition("any", Pools(100, validation=20), DataOptions())
    assert list(parts.test) == list(range(100, 120))
    assert set(parts.validation) < set(range(100))


def test_three_own_splits_are_kept_as_they_are() -> None:
    parts = partition("any", Pools(10, 3, 4), DataOptions())
    assert list(parts.validation) == [10, 11, 12]
    assert list(parts.test) == [13, 14, 15, 16]


def test_another_seed_gives_another_split() -> None:
    first, second = (partition("any", Pools(100), DataOptions(split_seed=seed)) for seed in (0, 1))
    assert set(first.test) != set(second.test)


@pytest.mark.parametrize("pools", [Pools(2), Pools(1, test=5), Pools(0)])
def test_too_few_samples_are_refused_with_the_counts(pools: Pools) -> None:
    with pytest.raises(DataError, match=f"tiny: {pools.train} train, .* Give more"):
        partition("tiny", pools, DataOptions())


def test_all_problems_of_the_options_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        DataOptions(size=0, channels=2, mean=(0.5,), validation=1.0, test=0.5, split_seed=-1)
    for name in ("size=0", "channels=2", "1 mean and 0 std", "validation=1.0", "test=0.5", "split_seed=-1"):
        assert name in str(caught.value)


@pytest.mark.parametrize("std", [(0.0,), (-1.0,)])
def test_a_std_that_is_not_positive_is_refused(std: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match="std="):
        DataOptions(mean=(0.0,), std=std)


def test_the_fingerprint_ignores_where_the_data_lies_and_nothing_else() -> None:
    plain = DataOptions()
    assert replace(plain, root=Path("elsewhere"), download=True).fingerprint() == plain.fingerprint()
    assert replace(plain, size=8).fingerprint() != plain.fingerprint()


def test_the_options_are_known_without_importing_torch() -> None:
    code = "import sys, compress.data, compress.data.options; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
