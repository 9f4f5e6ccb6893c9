"""Recipes: three sources in order, unknown keys named, all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.recipe import find_recipe, load_recipe
from compress.values import InputSpec


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "compress.toml").write_text(text)
    return folder / "model.pt"


def test_the_defaults_are_those_of_the_readme() -> None:
    recipe = load_recipe(Path("model.pt"))
    assert recipe.max_drop == 0.01
    assert recipe.objective == "balanced"
    assert recipe.out == Path("compressed")
    assert recipe.data is None


def test_a_file_beside_the_model_supplies_any_option(tmp_path: Path) -> None:
    model = write(
        tmp_path / "m",
        'data = "digits"\nmax-drop = 0.02\nthreads = 2\nmean = [0.5]\nstd = [0.25]\nepochs = 7\n'
        '[factory-args]\nwidth-mult = 0.5\n[sparsify]\nkeep = ["head.*"]\n[sparsify.finetune]\nlearning-rate = 0.1\n',
    )
    recipe = load_recipe(model)
    assert recipe.data == "digits"
    assert recipe.max_drop == 0.02
    assert recipe.benchmark.threads == (2,)
    assert recipe.preprocess.mean == (0.5,)
    assert recipe.sparsify.epochs == 7
    assert recipe.sparsify.keep == ("head.*",)
    assert recipe.sparsify.finetune.learning_rate == 0.1
    assert recipe.factory_args == {"width-mult": 0.5}


def test_the_command_line_wins_over_the_file_and_set_wins_over_both(tmp_path: Path) -> None:
    model = write(tmp_path / "m", 'data = "digits"\nseed = 1\nepochs = 1\n[sparsify]\nrounds = 2\n')
    recipe = load_recipe(model, {"seed": 2, "epochs": 2.0, "data": None}, ["seed=3", "sparsify.keep=['a', 'b']"])
    assert recipe.data == "digits"
    assert recipe.seed == 3
    assert recipe.sparsify.epochs == 2.0
    assert recipe.sparsify.rounds == 2
    assert recipe.sparsify.keep == ("a", "b")


def test_the_current_directory_is_looked_in_when_there_is_none_beside_the_model(tmp_path: Path) -> None:
    Path("compress.toml").write_text("seed = 4\n")
    assert load_recipe(tmp_path / "model.pt").seed == 4
    assert find_recipe(write(tmp_path / "m", "seed = 5\n")) == tmp_path / "m" / "compress.toml"


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    model = write(tmp_path / "m", 'data = "npz:./data.npz"\nfactory = "./net.py:Net"\nvocabulary = "./v.json"\n')
    recipe = load_recipe(model)
    assert recipe.data == f"npz:{tmp_path / 'm' / 'data.npz'}"
    assert recipe.factory == f"{tmp_path / 'm' / 'net.py'}:Net"
    assert recipe.preprocess.vocabulary == tmp_path / "m" / "v.json"


def test_an_unknown_key_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(RecipeError, match=r"sparsify\.epoch: did you mean sparsify\.epochs\?"):
        load_recipe(Path("model.pt"), overrides=["sparsify.epoch=3"])
    with pytest.raises(RecipeError, match=r"objectiv: did you mean objective\?"):
        load_recipe(Path("model.pt"), {"objectiv": "size"})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as told:
        load_recipe(
            Path("model.pt"),
            {"max_drop": "much", "objective": "smallest", "sizee": 3},
            ["sparsify.rounds=0", "quantise.x=1", "nonsense"],
        )
    text = str(told.value)
    for part in ("max_drop='much'", "objective='smallest'", "sizee", "rounds=0", "quantise", "nonsense"):
        assert part in text


def test_a_value_out_of_range_is_told_with_the_range() -> None:
    with pytest.raises(RecipeError, match=r"max_drop=2.*0\.\.1"):
        load_recipe(Path("model.pt"), {"max_drop": 2.0})
    with pytest.raises(RecipeError, match=r"size=0, at least 1"):
        load_recipe(Path("model.pt"), {"size": 0})


def test_a_broken_file_is_told_with_its_name_and_line(tmp_path: Path) -> None:
    model = write(tmp_path / "m", "seed = \n")
    with pytest.raises(RecipeError, match=r"compress\.toml is not valid TOML.*line 1"):
        load_recipe(model)


def test_a_recipe_file_that_is_not_there_is_told() -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(Path("model.pt"), file=Path("none.toml"))


def test_inputs_are_read_from_their_sizes() -> None:
    recipe = load_recipe(Path("model.pt"), {"input": ("3x32x32", "48:int64")})
    assert recipe.input_specs() == (
        InputSpec("input_0", (3, 32, 32)),
        InputSpec("input_1", (48,), "int64"),
    )
    with pytest.raises(RecipeError, match="3x224x224"):
        load_recipe(Path("model.pt"), {"input": ("3,32,32",)})


def test_each_set_of_a_table_of_own_names_changes_one_key_as_it_is_written() -> None:
    options = {"sparsify.layers": {"fc1": 0.5, "fc2": 0.6}}
    texts = ["sparsify.layers.features.0=0.7", "sparsify.layers.my-conv=0.8", "sparsify.layers.fc2=0.9"]
    recipe = load_recipe(Path("model.pt"), options, texts)
    assert recipe.sparsify.layers == {"fc1": 0.5, "fc2": 0.9, "features.0": 0.7, "my-conv": 0.8}
    recipe = load_recipe(Path("model.pt"), options, ["sparsify.layers={fc3=0.1}"])
    assert recipe.sparsify.layers == {"fc3": 0.1}


def test_one_value_where_several_may_be_is_a_tuple_of_one() -> None:
    given = ["benchmark.threads=2", "benchmark.providers=cpu", "batch=8", "sparsify.keep=fc"]
    recipe = load_recipe(None, {}, given)
    assert (recipe.benchmark.threads, recipe.benchmark.providers, recipe.benchmark.batches) == ((2,), ("cpu",), (8,))
    assert recipe.sparsify.keep == ("fc",)


def test_the_metric_and_the_energy_have_short_names() -> None:
    recipe = load_recipe(None, {"metric": "quality:mean_iou", "energy": "auto", "threads": (1, 2)})
    assert (recipe.benchmark.metric, recipe.benchmark.energy) == ("quality:mean_iou", "auto")
    assert recipe.benchmark.threads == (1, 2)


def test_a_drop_above_1_is_for_metrics_in_another_unit() -> None:
    assert load_recipe(None, {"metric": "quality:decibels", "max_drop": 3.0}).max_drop == 3.0
    with pytest.raises(RecipeError, match=r"max_drop=3\.0 must be a fraction"):
        load_recipe(None, {"max_drop": 3.0})


@pytest.mark.parametrize("option", ["max_drop", "benchmark.seconds", "benchmark.sensitivity_seconds"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_is_refused_before_any_work(option: str, value: str) -> None:
    with pytest.raises(RecipeError, match=f"{option.rpartition('.')[2]}={value}"):
        load_recipe(None, {"metric": "quality:decibels"}, [f"{option}={value}"])


def test_the_latency_objective_spends_all_rounds_on_channels(tmp_path: Path) -> None:
    recipe = load_recipe(tmp_path / "model.pt", {"objective": "latency"})
    assert recipe.skip == ("sparsify",)
    assert (recipe.prune.objective, recipe.prune.budget, recipe.prune.floor) == ("latency", 0.75, 0.03)
    both = load_recipe(tmp_path / "model.pt", {"objective": "balanced"})
    assert recipe.prune.rounds == both.prune.rounds + both.sparsify.rounds


def test_the_size_objective_counts_parameters_when_channels_leave(tmp_path: Path) -> None:
    counted = {
        objective: load_recipe(tmp_path / "model.pt", {"objective": objective}).prune.goal[0]
        for objective in ("size", "balanced")
    }
    assert counted == {"size": "parameters", "balanced": "macs"}


def test_what_an_objective_changes_gives_way_to_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "compress.toml").write_text('objective = "latency"\nskip = []\n[prune]\nrounds = 3\n')
    recipe = load_recipe(tmp_path / "model.pt", {}, ["prune.budget=0.1"])
    assert (recipe.skip, recipe.prune.rounds, recipe.prune.budget) == ((), 3, 0.1)
    assert recipe.prune.objective == "latency"
