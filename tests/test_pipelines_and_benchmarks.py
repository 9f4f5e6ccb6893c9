"""The recipes of pipelines/ and the scripts of benchmarks/ are whole: they are only run by hand."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.reviews import ARCHIVE, FILE_NAME, MEMBER, _sentences, fetch_reviews
from benchmarks.sparsification import SPARSITY, STEPS, WAYS, config_of
from benchmarks.train import MODELS
from compress.models.factory import build
from compress.recipe import load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "pipelines").glob("*.toml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_its_model_can_be_built(file: Path) -> None:
    recipe = load_recipe(Path("model.pt"), file=file)
    assert recipe.data is not None
    assert recipe.max_drop == 0.01
    if recipe.factory is not None:
        assert sum(p.numel() for p in build(recipe.factory, recipe.factory_args).parameters()) > 100_000


@pytest.mark.parametrize("file", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_starts_with_its_evidence_and_the_commands_that_gave_it(file: Path) -> None:
    text = file.read_text()
    header = text.split("\n\n")[0]
    command = next((name for name in ("reduce", "curve", "train") if f"\n[{name}]\n" in text), "pipeline")
    model = ""
    if command != "train":  # which starts from new weights
        name = max((name for name in MODELS if f"benchmarks.train {name}" in header), key=len)
        model = f"checkpoints/{name}/model.pt "
    assert f"compress {command} {model}--recipe pipelines/{file.name}" in header
    for word in ("n =", "torch 2.", "onnxruntime 1.", "95 %"):
        assert word in header, f"{file.name} does not tell its {word}"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_reviews_are_found_inside_both_archives(encoding: str, tmp_path: Path) -> None:
    text = "1\t-0.5\tA clichéd film\n"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name, content in ((f"hutto/._{MEMBER}", b"junk"), (f"hutto/{MEMBER}", text.encode(encoding))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as package:
        package.writestr(f"package/{ARCHIVE}", inner.getvalue())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert _sentences(tmp_path / "package.zip", scratch).decode() == text


def test_reviews_that_are_there_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("the network was asked"))
    (tmp_path / FILE_NAME).write_text("x")
    assert fetch_reviews(tmp_path) == tmp_path / FILE_NAME


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_sparsifying_is_given_the_same_training_and_sparsity(way: str) -> None:
    config = config_of(way)
    assert config.rounds * config.min_steps == STEPS
    assert config.layers or config.sparsity == SPARSITY
    if config.schedule == "iterative":
        assert 1 - (1 - config.cut) ** config.rounds == pytest.approx(SPARSITY)
