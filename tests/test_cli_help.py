"""Help, the nearest name for what there is not, and completion in the shell."""

from __future__ import annotations

import re
import shutil
import subprocess
import typing
from collections.abc import Iterable
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from compress.cli import SECTIONS, cli, options
from compress.cli.curve import METHODS as CURVES
from compress.cli.parameters import nearest
from compress.cli.prune import IMPORTANCES
from compress.cli.quantize import CALIBRATIONS, METHODS
from compress.data.loading import NAMED, PREFIXED
from compress.measurement.energy import Energy
from compress.measurement.sessions import PROVIDERS
from compress.pruning import PruneConfig
from compress.quantization import QuantizeConfig
from compress.quantization.isa import TARGETS
from compress.recipe import Recipe
from compress.sparsity.curves import FINE_TUNED
from compress.sparsity.curves import METHODS as RANKINGS
from tests.conftest import Call


def words_of(kind: type, name: str) -> set[str]:
    """The words of a Literal, or of a tuple or union of such, that a field takes."""
    pending, found = [typing.get_type_hints(kind)[name]], set()
    while pending:
        hint = pending.pop()
        pending += [inner for inner in typing.get_args(hint) if not isinstance(inner, str)]
        found |= {inner for inner in typing.get_args(hint) if isinstance(inner, str)}
    return found


@pytest.mark.parametrize("command", [None, *cli.commands])
def test_every_help_has_examples_that_are_commands(command: str | None, compress: Call) -> None:
    outcome = compress(*([command] if command else []), "--help")
    assert outcome.status == 0
    examples = outcome.out[re.search(r"Examples?:\n", outcome.out).end() :]  # type: ignore[union-attr]
    first = examples.strip().splitlines()[0].strip()
    assert "compress " in first
    assert command is None or f"compress {command}" in first


def test_the_bare_command_prints_its_help_with_every_command_under_a_heading(compress: Call) -> None:
    bare = compress()
    assert bare.status == 0
    assert bare.out == compress("--help").out
    for heading, commands in SECTIONS.items():
        assert f"{heading}:\n" in bare.out
        for command in commands:
            assert re.search(rf"^  {command.name} +\w", bare.out, re.MULTILINE), command.name
    assert max(map(len, bare.out.splitlines())) <= 110


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pipline",), "Did you mean 'pipeline'?"),
        (("xyzzy",), "There are pipeline, demo"),
        (("pipeline", "model.pt", "--objectve", "size"), "--objective"),
        (("pipeline", "model.pt", "--objective", "speed"), "Did you mean 'latency'?"),
        (("pipeline", "model.pt", "--skip", "quantise"), "Did you mean 'quantize'?"),
        (("pipeline", "model.pt", "--providers", "cpu,gpu"), "Did you mean 'cuda'?"),
        (("pipeline", "model.pt", "--target-isa", "AVX512_VNNI"), "Did you mean 'avx512-vnni'?"),
        (("pipeline", "model.pt", "--energy", "rappl"), "Did you mean 'rapl'?"),
        (("quantize", "model.pt", "--calibration", "entrophy"), "Did you mean 'entropy'?"),
        (("sparsify", "model.pt", "--schedule", "cubik"), "Did you mean 'cubic'?"),
        (("prune", "model.pt", "--importance", "fischer"), "Did you mean 'fisher'?"),
        (("curve", "model.pt", "--methods", "flat,lamb"), "Did you mean 'lamp'?"),
        (("completion", "bsh"), "Did you mean 'bash'?"),
        (("benchmark", "a.onnx", "b.onnx", "--json", "measured.json"), "--json > measured.json"),
    ],
)
def test_what_there_is_not_is_a_usage_error_that_names_the_nearest(
    arguments: tuple[str, ...], said: str, compress: Call
) -> None:
    outcome = compress(*arguments)
    assert outcome.status == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_key_of_the_recipe_and_a_data_source_get_the_nearest_too(compress: Call, model_file: Path) -> None:
    wrong_key = compress("pipeline", model_file, "--set", "sparsify.epcohs=3")
    assert (wrong_key.status, "did you mean sparsify.epochs?" in wrong_key.err) == (1, True)
    wrong_data = compress("pipeline", model_file, "--data", "fashon-mnist")
    assert (wrong_data.status, "Did you mean 'fashion-mnist'?" in wrong_data.err) == (1, True)


def test_what_is_nothing_like_a_name_gets_no_suggestion() -> None:
    assert nearest("qqqq", ("cpu", "cuda")) is None
    assert nearest("CPU", ("cpu", "cuda")) == "cpu"
    assert nearest("gpu", ("bash", "zsh")) is None  # what it stands for must be there


# The names that --help knows without importing what defines them


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (options.PROVIDERS, PROVIDERS),
        (options.ENERGY, typing.get_args(Energy)),
        (options.TARGETS, TARGETS),
        (options.NAMED_DATA, NAMED),
        (options.PREFIXED_DATA, PREFIXED),
        (options.OBJECTIVES, words_of(Recipe, "objective")),
        (options.SKIPPABLE, words_of(Recipe, "skip")),
        (options.DEVICES, words_of(Recipe, "device")),
        (METHODS, words_of(QuantizeConfig, "method")),
        (CALIBRATIONS, words_of(QuantizeConfig, "calibration")),
        (IMPORTANCES, words_of(PruneConfig, "importance")),
        (CURVES, [name + tuned for name in RANKINGS for tuned in ("", FINE_TUNED)]),
    ],
    ids=["providers", "energy", "targets", "data", "data prefixes", "objectives", "skip", "device", "methods",
         "calibration", "importance", "curves"],
)  # fmt: skip
def test_the_names_of_the_command_line_are_those_of_the_code(here: Iterable[str], there: Iterable[str]) -> None:
    assert set(here) == set(there)


# Options that all commands share


WITHOUT_JSON = ("completion", "report")  # the one prints a script, the other writes files
WITHOUT_QUIET = (*WITHOUT_JSON, "doctor", "check")  # they take no time


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: command.name)
def test_every_command_with_a_result_takes_json_and_every_long_one_quiet(command: click.Command) -> None:
    taken = {name for parameter in command.params for name in parameter.opts}
    assert ("--json" in taken) == (command.name not in WITHOUT_JSON)
    assert ("--quiet" in taken) == (command.name not in WITHOUT_QUIET)


# Completion


def completed(*arguments: str) -> list[str]:
    """What the shell offers for the last of the arguments."""
    found = ShellComplete(cli, {}, "compress", "_COMPRESS_COMPLETE").get_completions(
        list(arguments[:-1]), arguments[-1]
    )
    return [item.value for item in found]


@pytest.mark.parametrize(
    ("arguments", "offered"),
    [
        (("sp",), ["sparsify"]),
        (("pipeline", "model.pt", "--obj"), ["--objective"]),
        (("pipeline", "model.pt", "--objective", "l"), ["latency"]),
        (("pipeline", "model.pt", "--skip", ""), ["prune", "sparsify", "quantize"]),
        (("pipeline", "model.pt", "--data", "mn"), ["mnist", "mnist-5k"]),
        (("pipeline", "model.pt", "--data", "im"), ["images:"]),
        (("pipeline", "model.pt", "--providers", "cpu,co"), ["cpu,coreml"]),
        (("pipeline", "model.pt", "--target-isa", "arm-"), ["arm-dotprod", "arm-i8mm"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
    ],
)
def test_commands_options_and_values_are_completed(arguments: tuple[str, ...], offered: list[str]) -> None:
    assert completed(*arguments) == offered


def test_files_are_left_to_the_shell() -> None:
    found = ShellComplete(cli, {}, "compress", "_COMPRESS_COMPLETE").get_completions(["pipeline"], "mod")
    assert [item.type for item in found] == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_names_the_command(shell: str, compress: Call) -> None:
    outcome = compress("completion", shell)
    assert outcome.status == 0
    assert "_COMPRESS_COMPLETE" in outcome.out
    assert f"{shell}_complete" in outcome.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_takes_the_script(compress: Call) -> None:
    script = compress("completion", "bash").out
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p compress"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout
