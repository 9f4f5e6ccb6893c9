"""compress inspect --sensitivity: what it writes and prints, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch

from compress.cli import main
from compress.reporting import sensitivity_report
from compress.sparsity.masks import resolve_layers, sparsifiable
from compress.sparsity.sensitivity import Sensitivity
from tests.conftest import Call

PICTURES = {f"{name}.{kind}" for name in ("sensitivity", "parameters", "histograms") for kind in ("svg", "png")}
FILES = PICTURES | {"sensitivity.json", "sensitivity.csv", "report.html", "report.md"}
QUICK = ("--samples", 60, "--rates", "0:0.8:0.4,0.95", "--drop-budget", 0.05)


@pytest.fixture
def call(compress: Call, model_file: Path) -> Call:
    """Runs compress inspect on the tiny model."""
    return partial(compress, "inspect", model_file)


@pytest.fixture(scope="module")
def scanned(model_file: Path, digits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of one scan, and what it printed."""
    out, told = tmp_path_factory.mktemp("scan") / "sensitivity", io.StringIO()
    arguments = ("inspect", model_file, "--sensitivity", "--data", f"npz:{digits_file}", *QUICK, "--out", out)
    with redirect_stdout(told), pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    assert left.value.code == 0
    return out, told.getvalue()


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than scanning the tiny model."""
    empty = {f"{name}.{kind}": b"<svg " for name in sensitivity_report.TITLES for kind in ("svg", "png")}
    monkeypatch.setattr(sensitivity_report, "draw_pictures", lambda report: empty)


def test_the_scan_writes_its_files_and_nothing_else(scanned: tuple[Path, str]) -> None:
    out, told = scanned
    assert {path.name for path in out.iterdir()} == FILES
    assert f"{out}: sensitivity.json, " in told
    stored = json.loads((out / "sensitivity.json").read_text())
    sensitivity = Sensitivity.from_dict(stored["sensitivity"])
    assert sensitivity.rates == (0, 0.4, 0.8, 0.95)
    assert (sensitivity.n, sensitivity.measured_in) == (60, "accuracy")
    assert stored["suggestion"]["drop"] <= 0.05 + 1e-9
    assert [layer["name"] for layer in stored["weights"]] == ["0", "6", "8", "all layers"]
    with (out / "sensitivity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 4
    assert {line["parameter"] for line in lines} == {"0.weight", "6.weight", "8.weight"}


def test_what_it_prints_for_a_recipe_is_what_a_recipe_takes(scanned: tuple[Path, str], model_file: Path) -> None:
    out, told = scanned
    printed = told[told.index("[sparsify.layers]") :].split("\n\n")[0]
    layers = tomllib.loads(printed)["sparsify"]["layers"]
    stored = json.loads((out / "sensitivity.json").read_text())
    assert layers == stored["suggestion"]["layers"]
    parameters = sparsifiable(torch.load(model_file, weights_only=False))
    assert set(resolve_layers(parameters, layers)) == set(parameters)


def test_the_report_holds_its_pictures_and_loads_nothing(scanned: tuple[Path, str]) -> None:
    out, _ = scanned
    html = (out / "report.html").read_text()
    assert html.count("<svg ") == 3
    assert "[sparsify.layers]" in html
    assert not re.search(r"<(script|link|img|iframe)\b", html)
    assert not re.search(r'(src|href)="(?!#)', html)
    markdown = (out / "report.md").read_text()
    for name in re.findall(r"\]\((.*?)\)", markdown):
        assert (out / name).is_file()
    assert markdown.count("\n| ") == 1 + 3


@pytest.mark.usefixtures("without_pictures")
def test_json_is_printed_instead_of_tables(call: Call, digits_file: Path, tmp_path: Path) -> None:
    outcome = call("--sensitivity", "--json", "--data", f"npz:{digits_file}", *QUICK, "--out", "scan")
    assert json.loads(outcome.out) == json.loads((tmp_path / "scan" / "sensitivity.json").read_text())


@pytest.mark.usefixtures("without_pictures")
def test_without_labels_it_measures_fidelity(call: Call, digits_file: Path) -> None:
    outcome = call("--sensitivity", "--no-labels", "--json", "--data", f"npz:{digits_file}", *QUICK)
    found = json.loads(outcome.out)["sensitivity"]
    assert found["measured_in"] == "fidelity"
    assert found["baseline"] == 1.0


@pytest.mark.usefixtures("without_pictures")
def test_parameters_that_the_recipe_keeps_are_not_scanned(call: Call, digits_file: Path) -> None:
    outcome = call("--sensitivity", "--json", "--data", f"npz:{digits_file}", *QUICK, "--set", 'sparsify.keep=["0.*"]')
    assert [layer["name"] for layer in json.loads(outcome.out)["sensitivity"]["layers"]] == ["6", "8"]


@pytest.mark.parametrize("option", [("--drop-budget", 0.1), ("--samples", 9), ("--out", "x"), ("--overwrite",)])
def test_an_option_of_the_scan_without_it_is_a_usage_error(option: tuple[object, ...], call: Call) -> None:
    outcome = call("--input", "1x8x8", *option)
    assert outcome.status == 2
    assert f"{option[0]} needs --sensitivity" in outcome.err


def test_what_the_scan_cannot_use_is_told_before_it(call: Call, digits_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for options, status, words in (
        (("--drop-budget", 2), 1, "budget of 2.0"),
        (("--drop-budget", "nan"), 1, "budget of nan"),
        (("--out", "file", "--overwrite"), 2, "file is a file"),
    ):
        outcome = call("--sensitivity", "--data", f"npz:{digits_file}", *options)
        assert outcome.status == status
        assert words in outcome.err
        assert "reading the data" not in outcome.err


def test_a_scan_without_data_is_a_usage_error(call: Call, tmp_path: Path) -> None:
    outcome = call("--sensitivity", "--input", "1x8x8")
    assert outcome.status == 2
    assert "--data" in outcome.err
    assert not (tmp_path / "sensitivity").exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_directory_that_is_not_empty_is_replaced_only_when_asked(
    call: Call, digits_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "sensitivity").mkdir()
    (tmp_path / "sensitivity" / "report.md").write_text("old")
    arguments = ("--sensitivity", "--data", f"npz:{digits_file}", *QUICK)
    assert call(*arguments).status == 2
    assert (tmp_path / "sensitivity" / "report.md").read_text() == "old"
    assert call(*arguments, "--overwrite").status == 0
    assert (tmp_path / "sensitivity" / "report.md").read_text() != "old"


@pytest.mark.parametrize(
    ("option", "told"),
    [(("--rates", "0:1:0.5"), "rate < 1"), (("--samples", 0), "samples=0"), (("--drop-budget", 2), "budget of 2")],
)
def test_a_value_out_of_range_is_refused_in_a_line(
    option: tuple[object, ...], told: str, call: Call, digits_file: Path, tmp_path: Path
) -> None:
    outcome = call("--sensitivity", "--data", f"npz:{digits_file}", *QUICK, *option)
    assert outcome.status == 1
    assert told in outcome.err
    assert not (tmp_path / "sensitivity").exists()
