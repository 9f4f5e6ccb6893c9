"""What the comparison gives to every entry, and how each entry is run: once, apart, and kept with its record."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.compare import __main__ as command_line
from benchmarks.compare import matched, own, runs
from benchmarks.compare.entries import BY_NAME, ENTRIES, entries_for
from benchmarks.compare.inputs import Inputs
from benchmarks.compare.made import Made, Point, keep, made_before
from benchmarks.compare.runs import Place, chain, make
from benchmarks.peers.apart import LOG, Ran, run_apart
from benchmarks.peers.scripts import FOLDER, code_lines, files_of, user_lines
from tests.comparisons import failed, row

OBJECTIVES = ("size", "latency", "balanced")

# A peer: writes what it was told, counts its runs, and says what it was given.
STUB = """#!{python}
import json, pathlib, sys
script, *folders = [text for text in sys.argv[2:] if not text.startswith("--")]
out = pathlib.Path(folders[-1])
runs = pathlib.Path({log!r})
runs.write_text(runs.read_text() + script.rpartition(".")[2] + "\\n" if runs.exists() else script + "\\n")
{body}
"""
WRITES = """
(out / "p0.onnx").write_bytes(b"model")
point = {"file": "p0.onnx", "settings": "all", "validation_drop": 0.002, "within": True}
(out / "points.json").write_text(json.dumps({"points": [point], "steps": 30, "versions": {script: "1.0"}}))
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    (tmp_path / "work" / "inputs").mkdir(parents=True)
    return Inputs("lenet-300-100-mnist", 0, tmp_path / "work", tmp_path / "checkpoint", None, "identity")


class Peer:
    """A stand-in for every peer's Python."""

    def __init__(self, folder: Path) -> None:
        self.path, self.log = folder / "python", folder / "runs.txt"
        self.does(WRITES)

    def does(self, body: str) -> None:
        self.path.write_text(STUB.format(python=sys.executable, log=str(self.log), body=body))
        self.path.chmod(0o755)

    @property
    def runs(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    found = Peer(tmp_path)
    monkeypatch.setattr(runs, "_interpreter", lambda entry, place: found.path)
    return found


# --- entries


def test_every_entry_has_a_script_pinned_requirements_and_comes_after_what_it_needs() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    for entry in ENTRIES:
        assert all(names.index(one.name) <= names.index(entry.name) for one in chain(entry))
        assert (entry.objective is None) == bool(entry.script)
        if not entry.script:
            continue
        assert (FOLDER / f"{entry.script}.py").exists()
        script = (FOLDER / f"{entry.script}.py").read_text()
        told = {*entry.flags, *(flag for flags in entry.flags_of.values() for flag in flags)}
        assert all(f'"{flag.removeprefix("--")}"' in script for flag in told)
        if entry.environment is not None:
            pins = (FOLDER / f"requirements-{entry.environment}.txt").read_text().splitlines()
            assert all("==" in pin for pin in pins if pin and not pin.startswith(("#", "-")))


def test_recursive_reduction_is_tried_on_multilayer_perceptrons_alone() -> None:
    assert BY_NAME["recursive-reduction"] in entries_for("mlp")
    assert not [entry for entry in entries_for("cnn") if "recursive" in entry.name]


def test_what_an_entry_goes_on_from_is_run_with_it_and_before_it() -> None:
    asked = command_line.asked_for("cnn", ["torch-pruning-nncf", "compress-size", "recursive-reduction-ort"])
    assert [entry.name for entry in asked] == ["compress-size", "torch-pruning", "torch-pruning-nncf"]


# --- runs


def test_what_a_peer_made_is_kept_until_what_decides_it_changes(inputs: Inputs, peer: Peer) -> None:
    entry, place = BY_NAME["torch-prune"], Place(inputs)
    made = make(entry, place)
    assert (made.status, made.steps, made.points) == ("ok", 30, (Point("p0.onnx", "all", 0.002, True),))
    assert made.seconds is not None
    assert make(entry, place) == made == made_before(place.folder("torch-prune"))
    assert peer.runs == 1
    make(entry, Place(replace(inputs, identity="another")))
    assert peer.runs == 2
    make(entry, Place(replace(inputs, identity="another")), again=True)
    assert peer.runs == 3


def test_a_finisher_costs_what_its_source_costs_too_and_follows_its_files(
    inputs: Inputs, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, entry = Place(inputs), BY_NAME["torch-prune-ort"]
    source = make(BY_NAME["torch-prune"], place)
    made = make(entry, place, source)
    assert made.steps == 60
    assert made.seconds is not None
    assert made.process_seconds is not None
    assert source.seconds is not None
    assert made.seconds == pytest.approx(source.seconds + made.process_seconds)
    assert {name.rpartition(".")[2] for name in made.versions} == {"prune_torch", "finish_onnxruntime"}
    assert source.lines < made.lines < source.lines + user_lines(["finish_onnxruntime"]) + 1
    make(entry, place, source)
    assert peer.runs == 2
    (place.folder("torch-prune") / "p0.onnx").write_bytes(b"another model")
    make(entry, place, source)
    assert peer.runs == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise ValueError('no scale')", "ValueError: no scale"),
        ("pass", "wrote no points.json that can be read"),
        (WRITES + "(out / 'p0.onnx').unlink()", "points.json tells of p0.onnx, which it did not write"),
        ("import time; time.sleep(60)", "not done after 1 s"),
    ],
)
def test_a_peer_that_fails_is_a_result_and_kept_until_it_is_asked_for_again(
    body: str, status: str, inputs: Inputs, peer: Peer
) -> None:
    entry, place = BY_NAME["torch-prune"], Place(inputs, timeout_s=1 if "sleep" in body else 30)
    peer.does(body)
    made = make(entry, place)
    assert made.status.startswith(status)
    assert made.points == ()
    peer.does(WRITES)
    assert make(entry, place) == made
    follows = make(BY_NAME["torch-prune-ort"], place, made)
    assert follows.status == f"torch-prune, which it goes on from, failed: {made.status}"
    place = replace(place, timeout_s=30)
    assert make(entry, place, again=True).status == "ok"


def test_a_run_that_was_interrupted_leaves_nothing_that_is_kept(
    inputs: Inputs, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, place = BY_NAME["torch-prune"], Place(inputs)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "run_apart", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(entry, place)
    assert made_before(place.folder("torch-prune")) is None
    assert make(entry, place).status == "ok"


def test_an_environment_that_cannot_be_made_is_a_status(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.environments.sys.executable", "/bin/false")
    made = make(BY_NAME["dense-openvino"], Place(inputs, environments=inputs.work))
    assert made.status.startswith("no environment: ")


def test_a_native_runtime_writes_no_file_and_tells_how_it_is_started(inputs: Inputs, peer: Peer) -> None:
    made = make(BY_NAME["dense-openvino"], Place(inputs))
    assert made.command == (str(peer.path), "-m", "benchmarks.peers.native_openvino", "f32")
    assert (made.status, made.points, peer.runs) == ("ok", (), 0)


def test_a_process_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(late)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(9)"
    ran = run_apart([sys.executable, "-c", code], tmp_path, 0.7)
    assert (ran.status, ran.seconds < 5) == ("not done after 0.7 s", True)
    time.sleep(2)
    assert not late.exists()
    assert (tmp_path / LOG).exists()


# --- our own runs


class Finished:
    """A run directory as `compress pipeline` leaves it."""

    STAGES: ClassVar = {
        "00-baseline": {"seconds": 2.0, "figures": {}},
        "01-prune": {"seconds": 30.0, "figures": {"rounds": [{"steps": 400}, {"steps": 400}]}},
        "02-sparsify": {"seconds": 20.0, "figures": {"rounds": [{"steps": 300}]}},
        "05-benchmark": {"seconds": 70.0, "figures": {}},
    }

    def __init__(self, root: Path) -> None:
        for name, record in self.STAGES.items():
            (root / "stages" / name).mkdir(parents=True)
            content = {"stage": name[3:], **record}
            (root / "stages" / name / "record.json").write_text(json.dumps(content))
        (root / "model.onnx").write_bytes(b"model")


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def run(command: list[str], folder: Path, *_: object, **__: object) -> Ran:
        root = Path(command[command.index("--out") + 1])
        if not root.exists():
            Finished(root)
        return Ran("ok", 130.0, 200.0)

    variants = [{"name": "int8", "validation": {"drop": 0.004}}]
    monkeypatch.setattr(runs, "run_apart", run)
    monkeypatch.setattr(own, "read_run", lambda root: {"shipped": "int8", "variants": variants})
    return


@pytest.mark.usefixtures("finished")
def test_our_own_run_tells_its_steps_and_its_seconds_without_what_it_measured(inputs: Inputs) -> None:
    made = make(BY_NAME["compress-size"], Place(inputs))
    assert (made.status, made.seconds, made.process_seconds, made.cpu_seconds) == ("ok", 52.0, 130.0, 200.0)
    assert (made.steps, made.lines) == (1100, 1)
    assert made.points == (Point("run/model.onnx", "int8", 0.004, True),)
    assert "source" in made.versions


@pytest.mark.usefixtures("finished")
def test_our_own_run_that_is_there_is_gone_on_with_and_its_process_tells_no_cost(inputs: Inputs) -> None:
    place = Place(inputs)
    Finished(place.folder("compress-size") / own.RUN)
    made = make(BY_NAME["compress-size"], place)
    assert (made.steps, made.cpu_seconds) == (1100, None)
    assert "source" not in made.versions  # other code may have made it


@pytest.mark.usefixtures("finished")
def test_a_default_of_the_recipe_that_changes_makes_our_entry_anew(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(BY_NAME["compress-latency"], Place(inputs))
    assert make(BY_NAME["compress-latency"], Place(inputs)) == made
    monkeypatch.setitem(own.load_recipe.__globals__, "FOR_OBJECTIVE", {"latency": {"prune.rounds": 3}})
    assert make(BY_NAME["compress-latency"], Place(inputs)).identity != made.identity


@pytest.mark.usefixtures("finished")
def test_our_entry_made_by_other_code_is_kept_and_told(inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(inputs)
    made = make(BY_NAME["compress-size"], place)
    keep(replace(made, versions={**made.versions, "source": "other"}), place.folder("compress-size"))
    make(BY_NAME["compress-size"], place)
    assert "--again compress-size" in capsys.readouterr().err


# --- ours at the drop of the best peer


@pytest.mark.usefixtures("finished")
def test_ours_may_lose_what_the_smallest_or_fastest_peer_lost_on_validation(inputs: Inputs) -> None:
    small, fast = row("torch-prune-ort", 10, 2.0, drop=0.0072, test_drop=0.5), row("torch-pruning", 20, 1.0, drop=-0.01)
    over, ours = row("torch-pruning-ort", 5, 0.5, drop=0.02, eligible=False), row("compress-size", 1, 0.1, drop=0.009)
    entries = [BY_NAME["compress-size-matched"], BY_NAME["compress-latency-matched"]]
    made = command_line.make_matched(entries, Place(inputs), [], lambda: [small, fast, over, ours])
    assert [one.settings.partition(": ")[2] for one in made] == [
        "--max-drop 0.0072, of torch-prune-ort model.onnx",
        "--max-drop 0, of torch-pruning model.onnx",  # it gained: no loss is allowed
    ]
    assert made[0].points[0].within  # 0.004, see `finished`
    assert not made[1].points[0].within


@pytest.mark.usefixtures("finished")
def test_which_peer_ours_is_matched_to_is_decided_once_for_a_model_and_its_data(inputs: Inputs) -> None:
    def settings(drop: float, again: list[str], found: Inputs = inputs) -> str:
        rows = [row("torch-prune", 10, 2.0, drop=drop)]
        return command_line.make_matched([entry], Place(found), again, lambda: rows)[0].settings

    entry = BY_NAME["compress-size-matched"]
    first = settings(0.003, [])
    assert settings(0.005, []) == first
    assert settings(0.005, [entry.name]) != first
    assert settings(0.006, [], replace(inputs, identity="other")) == first.replace("0.003", "0.006")


def test_ours_is_matched_to_no_peer_where_none_was_measured(inputs: Inputs) -> None:
    rows = [row("dense", 10, 2.0), failed("torch-prune"), row("compress-size", 1, 0.1)]
    (made,) = command_line.make_matched([BY_NAME["compress-size-matched"]], Place(inputs), [], lambda: rows)
    assert made.status == matched.NO_PEER
    assert not made.points


# --- lines


def test_lines_of_code_are_those_without_blanks_comments_and_docstrings() -> None:
    source = (
        '"""Says what it is."""\n\nimport a\n\n# why\ndef f(x):\n    """Doc\n    string."""\n    y = """two\nlines"""\n'
    )
    source += "    return (\n        x,  # told\n\n        y,\n    )\n"
    assert code_lines(source) == 1 + 1 + 2 + 4


def test_a_script_is_told_apart_by_all_that_it_imports_and_shared_code_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from benchmarks.peers.shared import f\nf()\n")
    (tmp_path / "two.py").write_text("from benchmarks.peers.shared import f\nfrom os import path\n")
    (tmp_path / "shared.py").write_text("from benchmarks.peers.points import g\n\ndef f(): g()\n")
    (tmp_path / "points.py").write_text("def g(): ...\n")
    assert [path.stem for path in files_of("one", tmp_path)] == ["one", "points", "shared"]
    assert user_lines(["one", "two"], tmp_path) == 2 + 2 + 2  # what tells the benchmark is not the user's


# --- the command line


def test_only_what_is_there_is_measured_where_that_is_asked_for(inputs: Inputs, peer: Peer) -> None:
    place, entries = Place(inputs), command_line.asked_for("lenet-300-100-mnist", ["torch-prune-ort"])
    assert command_line.make_all(entries, place, [], only_kept=True) == []
    made = command_line.make_all(entries, place, [], only_kept=False)
    assert [one.name for one in made] == ["torch-prune", "torch-prune-ort"]
    assert command_line.make_all(entries, place, [], only_kept=True) == made
    assert peer.runs == 2


def test_all_workloads_are_those_whose_dense_model_is_there(tmp_path: Path) -> None:
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "model.pt").touch()
    options = command_line.arguments(["--checkpoints", str(tmp_path), "--entries", "--peers", "torch-prune"])
    assert (options.workload, list(options.entries), options.peers) == (["cnn"], [], ["torch-prune"])
    own = {one.name for one in ENTRIES if one.kind == "own"}
    assert set(command_line.arguments(["--workload", "cnn"]).entries) == own >= {f"compress-{o}" for o in OBJECTIVES}


def test_the_command_that_is_documented_is_one_that_make_runs() -> None:
    makefile = (Path(runs.__file__).parents[2] / "Makefile").read_text()
    (line,) = re.findall(r"python -m benchmarks\.compare (.*)", makefile)
    assert line == "--workload $(WORKLOAD) $(OPTIONS)"


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Made("a", "b", None, "c", points=(Point("p", "s", None, False),), versions={"x": "1"}, command=("python",))
    assert made_before(tmp_path) is None
    keep(made, tmp_path)
    assert made_before(tmp_path) == made
    (tmp_path / "made.json").write_text('{"name": "of an older version"}')
    assert made_before(tmp_path) is None
