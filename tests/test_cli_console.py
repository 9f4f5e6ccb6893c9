"""Tables and JSON on standard output."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from compress.cli.console import emit, say, show_table, write_what_the_output_knows
from compress.reporting import variant_table
from tests.conftest import Call
from tests.reports import example_report


def shown(width: int) -> list[str]:
    report = example_report()
    table = variant_table(report["variants"], report["shipped"])
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, highlight=False)
    show_table(table.columns, table.rows, table.mark, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_a_table_that_is_too_wide_goes_on_below_and_loses_nothing(width: int) -> None:
    report, lines = example_report(), shown(width)
    table = variant_table(report["variants"])
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for cell in (*table.columns, *(cell for row in table.rows for cell in row)):
        assert cell in text
    assert sum(line.startswith("baseline-fp32") for line in lines) == sum(
        line.startswith("pruned-sparse-int8-weights") for line in lines
    )


def test_a_wide_terminal_shows_one_table() -> None:
    assert len(shown(300)) == 6


def test_json_is_plain_values_with_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"file": Path("a/b"), "values": (1, 2)})
    assert json.loads(capsys.readouterr().out) == {"file": "a/b", "values": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        emit({"value": float("nan")})


def test_json_is_all_of_standard_output(compress: Call, model_file: Path, digits_file: Path, tmp_path: Path) -> None:
    data = ("--data", f"npz:{digits_file}")
    few = ("--set", "sparsify.rounds=1", "--set", "sparsify.min_steps=3", "--epochs", "0.1")
    for arguments, status, keys in (
        (("inspect", model_file, *data), 0, {"groups", "layers", "passes"}),
        (("export", model_file, *data, "--out", "m.onnx"), 0, {"file", "ort", "figures", "notes"}),
        (("inspect", "m.onnx"), 0, {"operators", "raw_bytes"}),
        (("sparsify", model_file, *data, "--sparsity", "0.5", "--max-drop", "0.9", *few), 0, {"file", "figures"}),
        (("sparsify", model_file, *data, "--sparsity", "0.99", "--max-drop", "0", "--out", "no", *few), 3, {"skipped"}),
        (("doctor",), 0, {"environment", "providers", "troubles"}),
    ):
        outcome = compress(*arguments, "--json")
        assert outcome.status == status, outcome
        assert keys <= set(json.loads(outcome.out)), arguments
    assert not (tmp_path / "no").exists()


def test_quiet_leaves_standard_error_empty(compress: Call, model_file: Path) -> None:
    loud = compress("export", model_file, "--input", "1x8x8", "--out", "loud.onnx")
    quiet = compress("export", model_file, "--input", "1x8x8", "--out", "quiet.onnx", "--quiet")
    assert "reading the model" in loud.err
    assert quiet.err == ""
    assert "quiet.onnx" in quiet.out


def test_an_error_with_json_is_on_standard_error_alone(compress: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    outcome = compress("export", tmp_path / "x.npy", "--json")
    assert (outcome.status, outcome.out) == (1, "")
    assert "NumPy" in outcome.err


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", "drop -0.0018, 4.0x, 3.1-4.2, \\u65e5"), ("cp1252", "drop -0.0018, 4.0×, 3.1–4.2, \\u65e5")],
)
def test_an_output_that_does_not_know_a_sign_gets_a_plain_one(
    encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    write_what_the_output_knows()
    say("drop −0.0018, 4.0×, 3.1–4.2, 日")
    assert written.getvalue().decode(encoding).rstrip() == expected
