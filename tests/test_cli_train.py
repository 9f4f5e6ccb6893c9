"""compress train: what it writes and prints, and how it ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Call, Outcome

FILES = {
    "comparison.json", "comparison.md", "comparison.html", "comparison.svg", "comparison.png", "history.csv", "arms",
    "weights-seed0.safetensors", "weights-seed1.safetensors",
}  # fmt: skip
FAST = (
    "--seeds", 2, "--epochs", 2, "--interval", "0.5 epochs", "--threshold", 0.5, "--sparsity", 0.5,
    "--set", "train.finetune.learning_rate=0.005", "--set", "train.finetune.batch_size=32",
)  # fmt: skip
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
"""

OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 10))

    def forward(self, x):
        return x.flatten(1) @ self.w
"""


@pytest.fixture
def call(compress: Call, tmp_path: Path, digits_file: Path) -> Call:
    """Runs compress train on the digits, beside a net.py."""
    (tmp_path / "net.py").write_text(NET)

    def run(*arguments: object, data: bool = True) -> Outcome:
        source = ("--data", f"npz:{digits_file}", "--set", "preprocess.calibration=64") if data else ()
        return compress("train", *source, *FAST, *arguments)

    return run


def test_it_prints_the_verdict_and_writes_the_comparison_with_pictures_and_sparse_weights_and_nothing_else(
    call: Call, tmp_path: Path
) -> None:
    outcome = call("--factory", "./net.py:net", "--out", "both")
    assert outcome.status == 0, outcome.err
    for words in ("without pruning", "with pruning", "paired t-test, 2 seeds", "weights removed", "mean drop"):
        assert words in outcome.out
    # Who goes first alternates.
    assert outcome.err.index("seed 0, dense") < outcome.err.index("seed 0, sparse")
    assert outcome.err.index("seed 1, sparse") < outcome.err.index("seed 1, dense")
    out = tmp_path / "both"
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "comparison.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["dense", "sparse"] * 2
    assert report["settings"]["finetune.batch_size"] == 32
    assert report["settings"]["finetune.optimizer"] == "adam"
    weights = load_file(out / "weights-seed1.safetensors")
    zeros = sum(int((w == 0).sum()) for w in weights.values() if w.ndim == 2)
    assert zeros == pytest.approx(0.5 * (64 * 24 + 24 * 10), abs=2)
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert {(row["seed"], row["training"]) for row in rows} == {(s, t) for s in "01" for t in ("dense", "sparse")}
    assert rows[-1]["action"] in ("hold", "raise", "pause", "")
    page = (out / "comparison.html").read_text()
    assert "<svg" in page
    assert "src=" not in page
    assert "<script" not in page
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for text in (page, (out / "comparison.md").read_text()):
        assert "McNemar" in text
        assert "TOST" in text
        assert report["verdict"]["outcome"] in ("undecided", "no worse", "small loss", "loss")


def test_resume_keeps_what_is_finished_and_more_seeds_only_add_to_it(call: Call, tmp_path: Path) -> None:
    outcome = call("--factory", "./net.py:net", "--seeds", 1)
    assert outcome.status == 0
    assert "one seed" in outcome.out
    assert call("--factory", "./net.py:net").status == 1  # not empty, and neither was asked for
    (tmp_path / "trained" / "arms" / "seed0-sparse.json").unlink()
    first = (tmp_path / "trained" / "weights-seed0.safetensors").read_bytes()
    resumed = call("--factory", "./net.py:net", "--resume")
    assert resumed.status == 0, resumed.err
    assert "seed 0, dense" not in resumed.err
    assert "seed 0, sparse" in resumed.err
    assert (tmp_path / "trained" / "weights-seed0.safetensors").read_bytes() == first
    assert call("--factory", "./net.py:net", "--resume", "--overwrite").status == 1
    again = call("--factory", "./net.py:net", "--overwrite", "--seeds", 1)
    assert again.status == 0
    assert "seed 0, dense" in again.err
    assert not (tmp_path / "trained" / "weights-seed1.safetensors").exists()


def test_a_model_is_fine_tuned_from_its_weights_or_trained_from_new_ones(
    call: Call, tmp_path: Path, model_file: Path
) -> None:
    outcomes = {}
    for name, options in {"tuned": (), "new": ("--fresh",)}.items():
        assert call(model_file, "--epochs", 0.3, "--interval", 1, "--out", name, *options).status == 0
        outcomes[name] = json.loads((tmp_path / name / "comparison.json").read_text())
    starts = {name: {arm["started_from"] for arm in report["arms"]} for name, report in outcomes.items()}
    assert len(starts["tuned"]) == 1  # the same for every seed
    assert len(starts["new"]) == 2  # one a seed
    mean = {name: sum(a["test"]["value"] for a in report["arms"]) / 4 for name, report in outcomes.items()}
    assert mean["tuned"] > 0.8 > mean["new"]


def test_a_significant_loss_above_the_margin_has_status_3(call: Call) -> None:
    # A limit of 99.9 % reached in one cut, with every loss allowed, leaves two weights: nothing can be told apart.
    outcome = call("--factory", "./net.py:net", "--sparsity", 0.999, "--threshold", 100, "--seeds", 3, "--epochs", 3)
    assert outcome.status == 3, outcome
    assert "Significant loss" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--margin", 0, "--seeds", 0), ("margin=0.0", "seeds=0")),
        (("--interval", "sometimes"), ("interval='sometimes'", "1 epoch")),
        (("--sparsity", 1), ("sparsity=1.0",)),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(
    call: Call, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    outcome = call("--factory", "./net.py:net", *arguments)
    assert outcome.status == 1
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "trained").exists()


def test_no_data_and_neither_model_nor_factory_are_told_in_a_line(call: Call) -> None:
    assert "--data" in call("--factory", "./net.py:net", data=False).err
    assert "--factory" in call().err


def test_what_is_refused_deletes_nothing_with_overwrite(call: Call, tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "comparison.json").write_text("{}")
    for options, words in ((("--no-labels",), "needs labels"), (("--epochs", 0.5), "nothing would be removed")):
        outcome = call(model_file, "--overwrite", *options)
        assert outcome.status == 1
        assert words in outcome.err
    assert (tmp_path / "trained" / "comparison.json").is_file()


def test_another_content_of_the_factorys_file_is_another_model(call: Call, tmp_path: Path) -> None:
    short = ("--factory", "./net.py:net", "--seeds", 1, "--epochs", 0.3, "--interval", 1)
    assert call(*short).status == 0
    assert "seed 0, dense" not in call(*short, "--resume").err
    (tmp_path / "net.py").write_text(NET.replace("ReLU", "GELU"))
    assert "seed 0, dense" in call(*short, "--resume").err


def test_a_warning_about_the_model_is_in_the_report(call: Call, tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "untrained.pt")
    assert call("untrained.pt", "--seeds", 1, "--epochs", 0.3, "--interval", 1).status == 0
    for name in ("comparison.md", "comparison.html"):
        assert "no better than chance" in (tmp_path / "trained" / name).read_text()


def test_new_weights_are_refused_where_no_layer_can_draw_them(call: Call, tmp_path: Path) -> None:
    import torch

    (tmp_path / "own.py").write_text(OWN)
    torch.save({"w": torch.randn(64, 10)}, tmp_path / "own.pt")
    outcome = call("own.pt", "--factory", "./own.py:Own", "--fresh")
    assert outcome.status == 1
    assert "cannot draw w anew" in outcome.err
