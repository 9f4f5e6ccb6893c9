"""``python:file:function``: the user's own loaders."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.data import DataOptions, load_data
from compress.errors import DataError

HEAD = """
import random
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

x = torch.arange(60.0, dtype=torch.float64).reshape(30, 2)
y = torch.arange(30) % 3
whole = TensorDataset(x, y)

class Noisy(Dataset):
    def __len__(self): return 30
    def __getitem__(self, i): return x[i] + torch.rand(2) + random.random(), int(y[i])

class Wild(Noisy):
    generator = torch.Generator()
    def __getitem__(self, i): return x[i] + torch.rand(2, generator=self.generator), int(y[i])

class Missing(Noisy):
    def __getitem__(self, i): raise FileNotFoundError("gone")

class Stream(IterableDataset):
    def __iter__(self): return iter(zip(x, y.tolist()))

class Pairs(Dataset):
    def __len__(self): return 30
    def __getitem__(self, i): return (x[i], torch.tensor([i])), int(y[i])
"""


def spec(folder: Path, returned: str) -> str:
    (folder / "mine.py").write_text(f"{HEAD}\ndef loaders(): return {returned}\n")
    return f"python:{folder / 'mine.py'}:loaders"


def test_a_loader_lends_its_dataset_and_the_order_is_ours(tmp_path: Path) -> None:
    data = load_data(spec(tmp_path, "{'train': DataLoader(whole, batch_size=4, shuffle=True)}"))
    (batch,), labels = data.train.fetch(np.array([3, 0]))
    assert batch.tolist() == [[6, 7], [0, 1]]
    assert batch.dtype == torch.float32
    assert labels is not None
    assert labels.tolist() == [0, 0]
    assert (len(data.train), data.classes, data.inputs[0].shape) == (22, 3, (2,))


def test_own_splits_are_kept(tmp_path: Path) -> None:
    parts = "[Subset(whole, range(20)), Subset(whole, range(20, 24)), Subset(whole, range(24, 30))]"
    data = load_data(spec(tmp_path, parts))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 4, 6)
    (batch,), _ = next(data.test.batches(6))
    assert batch.tolist() == [[2 * i, 2 * i + 1] for i in range(24, 30)]


def test_a_subset_sampler_is_respected(tmp_path: Path) -> None:
    parts = "[DataLoader(whole, sampler=SubsetRandomSampler(range(a, b))) for a, b in ((0, 20), (20, 30))]"
    data = load_data(spec(tmp_path, parts))
    (batch,), _ = next(data.test.batches(10))
    assert batch[0].tolist() == [40, 41]


def test_splits_that_share_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train and test share 10 samples"):
        load_data(spec(tmp_path, "(whole, Subset(whole, range(10)))"))


@pytest.mark.parametrize("source", ["Stream()", "DataLoader(Stream(), batch_size=7)"])
def test_an_iterable_dataset_is_read_into_memory(tmp_path: Path, source: str) -> None:
    data = load_data(spec(tmp_path, f"{{'train': {source}}}"))
    (batch,), labels = data.train.fetch(np.array([29, 1]))
    assert batch.tolist() == [[58, 59], [2, 3]]
    assert labels is not None
    assert labels.tolist() == [2, 1]


def test_an_augmentation_gives_the_same_sample_each_time(tmp_path: Path) -> None:
    one, two = (load_data(spec(tmp_path, "{'train': Noisy()}")) for _ in range(2))
    assert one.sha256 == two.sha256
    together, alone = one.train.fetch(np.array([5, 8]))[0][0], one.train.fetch(np.array([8]))[0][0]
    assert torch.equal(together[1:], alone)
    assert not torch.equal(together, torch.tensor([[10.0, 11.0], [16.0, 17.0]]))


def test_reading_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    data = load_data(spec(tmp_path, "{'train': Noisy()}"))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    data.train.fetch(np.arange(4))
    assert torch.equal(torch.rand(3), expected)


def test_samples_that_differ_from_read_to_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without augmentation"):
        load_data(spec(tmp_path, "{'train': Wild()}"))


def test_several_inputs_are_numbered(tmp_path: Path) -> None:
    data = load_data(spec(tmp_path, "{'train': Pairs()}"))
    assert [(i.name, i.shape, i.dtype) for i in data.inputs] == [
        ("input_0", (2,), "float32"),
        ("input_1", (1,), "int64"),
    ]


@pytest.mark.parametrize("source", ["TensorDataset(x)", "list(x)"])
def test_samples_without_labels_are_unlabelled(tmp_path: Path, source: str) -> None:
    assert load_data(spec(tmp_path, f"{{'train': {source}}}")).classes is None


def test_labels_can_be_ignored(tmp_path: Path) -> None:
    data = load_data(spec(tmp_path, "{'train': whole}"), DataOptions(labels=False))
    assert next(data.train.batches(2))[1] is None


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "returned a NoneType; allowed are"),
        ("{'test': whole}", "returned a dict of test; allowed are"),
        ("{'train': whole, 'dev': whole}", "returned a dict of train, dev; allowed are"),
        ("{'train': 3}", "found int; allowed are a torch DataLoader or a dataset"),
        ("{'train': []}", "empty"),
        ("{'train': [{'a': 1}] * 5}", "a batch is a dict of a; allowed are"),
        ("{'train': [(x[0], 'cat')] * 5}", "a batch is a list of Tensor, tuple; allowed are"),
        ("{'train': [(x[0], 0), (x[0, :1], 0)] * 5}", "making a batch of the samples failed with RuntimeError"),
        ("{'train': [(x[0], 0.5)] * 5}", "no class number"),
        ("{'train': [(x[0] / 0, 0)] * 5}", "5 samples hold NaN or infinity"),
        ("[whole, TensorDataset(x)]", "no labels in test"),
        ("[whole, TensorDataset(x[:, :1], y)]", "differ in shape or type"),
        ("{'train': Missing()}", "reading sample 0 failed with FileNotFoundError: gone"),
        ("1 / 0", "failed with ZeroDivisionError"),
        ("{'train': DataLoader(whole, sampler=[1, 2])}", "samples drawn by list"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, returned: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data(spec(tmp_path, returned))


@pytest.mark.parametrize("target", ["nothing", "absent_module:f", "./absent.py:f", "math:absent", "math:pi"])
def test_a_function_that_cannot_be_found_is_refused_with_its_name(target: str) -> None:
    with pytest.raises(DataError, match=target.partition(":")[0]):
        load_data(f"python:{target}")


def test_a_module_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_loaders_here.py").write_text(f"{HEAD}\ndef loaders(): return {{'train': whole}}\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_data("python:my_loaders_here:loaders").train) == 22
