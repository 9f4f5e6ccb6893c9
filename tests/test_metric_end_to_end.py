"""A metric of the user's own decides the whole run: what is loaded, what steers, what is reported."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.data import DataOptions, load_data
from compress.errors import DataError, MeasurementError
from compress.measurement.metrics import Metric
from compress.opening import open_inputs
from compress.pipeline import run
from compress.recipe import Recipe
from compress.sparsity.curves import CurveConfig, measure_curves
from compress.sparsity.sensitivity import scan
from compress.training import FineTuneConfig, Recovery
from compress.values import Context, Model, silent

Quick = Callable[..., Recipe]
FAST = {"seconds": 0.05, "sensitivity_seconds": 0.0, "threads": [1], "launches": 1}


def half_right(outputs: Any, labels: Any) -> Any:
    """Half a point for a right answer: each drop is half of accuracy's."""
    return 0.5 * (outputs.argmax(1) == labels)


HALF = Metric("./m.py:half_right", "half_right", half_right)


@pytest.fixture
def metric_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "def nearness(outputs, labels):\n    return -np.abs(outputs - labels).mean(axis=1)\n"
        "def half_right(outputs, labels):\n    return 0.5 * (outputs.argmax(1) == labels)\n"
    )
    return path


def test_every_drop_that_steers_is_the_metrics(opened: tuple[Model, Context]) -> None:
    model, plain = opened
    assert plain.data is not None
    rated = replace(plain, metric=HALF)
    worse = copy.deepcopy(model.module)
    for parameter in worse.parameters():
        if parameter.ndim > 1:
            parameter.data[:, ::2] = 0
    drops = [Recovery(model, plain.data, c, FineTuneConfig()).drop(worse) for c in (plain, rated)]
    assert drops[0] > 0.05
    assert drops[1] == pytest.approx(drops[0] / 2)


def test_sensitivity_and_curves_are_of_the_metric(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None
    split = context.data.validation
    plain, rated = (scan(model, split, (0.0, 0.9), metric=metric) for metric in (None, HALF))
    assert (plain.measured_in, rated.measured_in) == ("accuracy", "half_right")
    assert rated.baseline == pytest.approx(plain.baseline / 2)
    for one, other in zip(plain.layers, rated.layers, strict=True):
        assert other.accuracy == pytest.approx([value / 2 for value in one.accuracy])
    curves = measure_curves(model, CurveConfig(rates="0,0.9", methods=("flat",)), replace(context, metric=HALF))
    assert curves.measured_in == "half_right"
    assert [point.band for point in curves.points] == ["none", "none"]


def test_a_run_is_decided_by_the_metric(quick: Quick, metric_file: Path) -> None:
    spec = f"{metric_file}:half_right"
    report = run(quick(skip=("prune", "sparsify"), benchmark={**FAST, "metric": spec})).to_dict()
    assert report["verdict"]["measured_in"] == "half_right"
    for entry in report["variants"]:
        assert entry["metric"]["value"] == pytest.approx(entry["accuracy"]["value"] / 2)
        assert entry["drop"] == pytest.approx(report["variants"][0]["metric"]["value"] - entry["metric"]["value"])


def test_a_regression_is_judged_by_a_metric(quick: Quick, metric_file: Path, tmp_path: Path) -> None:
    """Labels of floats, two a sample: what no accuracy can take."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)).astype(np.float32)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    y = module(torch.from_numpy(x)).detach().numpy() + 0.05 * rng.standard_normal((400, 2))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    torch.save(module, tmp_path / "regression.pt")
    options = {"model": tmp_path / "regression.pt", "data": f"npz:{tmp_path / 'data.npz'}"}
    with pytest.raises(DataError, match="one class number a sample"):
        run(quick(**options, benchmark=FAST))
    report = run(quick(**options, benchmark={**FAST, "metric": f"{metric_file}:nearness"}, max_drop=0.05)).to_dict()
    baseline, shipped = report["variants"][0], next(v for v in report["variants"] if v["name"] == report["shipped"])
    assert baseline["accuracy"] is None
    assert baseline["metric"]["value"] == pytest.approx(-0.04, abs=0.01)  # the mean of |noise|
    assert shipped["drop"] <= 0.05
    assert report["verdict"]["measured_in"] == "nearness"
    assert next(s for s in report["stages"] if s["stage"] == "prune")["skipped"].startswith("fine-tuning needs a class")
    json.dumps(report, allow_nan=False, default=str)


def test_the_metrics_source_decides_the_results_only_where_there_is_one(quick: Quick, metric_file: Path) -> None:
    def identity(**benchmark: Any) -> str:
        return open_inputs(quick(benchmark={**FAST, **benchmark}), silent).identity

    plain, rated = identity(), identity(metric=f"{metric_file}:half_right")
    assert plain == identity(rounds=30)
    assert rated != plain
    metric_file.write_text(metric_file.read_text() + "# changed\n")
    assert identity(metric=f"{metric_file}:half_right") != rated


def test_a_metric_that_is_not_there_is_told_before_anything_is_read(quick: Quick) -> None:
    with pytest.raises(MeasurementError, match=r"--metric \./none\.py:f: there is no file"):
        open_inputs(quick(data="npz:nowhere.npz", benchmark={**FAST, "metric": "./none.py:f"}), silent)


def test_labels_of_any_kind_are_kept_for_a_metric_and_never_trained_on(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).integers(0, 3, (60, 4, 4))
    np.savez(tmp_path / "masks.npz", x=np.zeros((60, 1, 4, 4), np.float32), y=masks)
    data = load_data(f"npz:{tmp_path / 'masks.npz'}", DataOptions(labels="any"))
    assert data.classes is None
    labels = data.test.fetch(data.test.indices[:5])[1]
    assert labels is not None
    assert (labels.shape, labels.dtype) == ((5, 4, 4), torch.int64)
    assert data.train.fetch(data.train.indices[:5])[1] is None
    np.savez(tmp_path / "classes.npz", x=np.zeros((60, 3), np.float32), y=np.arange(60) % 4)
    assert load_data(f"npz:{tmp_path / 'classes.npz'}", DataOptions(labels="any")).classes == 4


def test_datasets_of_python_give_labels_of_any_kind_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def data():\n    x = torch.arange(120.).reshape(40, 3)\n    return {'train': TensorDataset(x, x[:, :2] / 7)}\n"
    )
    spec = f"python:{tmp_path / 'mine.py'}:data"
    with pytest.raises(DataError, match="one class number a sample"):
        load_data(spec)
    data = load_data(spec, DataOptions(labels="any"))
    labels = data.test.fetch(data.test.indices[:3])[1]
    assert labels is not None
    assert (labels.shape, labels.dtype) == ((3, 2), torch.float32)
    assert data.classes is None
