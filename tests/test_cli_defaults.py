"""What --help says of defaults, against the configs that decide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

import click
import pytest

from compress.cli import cli
from compress.cli.train import FIELDS
from compress.recipe import load_recipe

# Options whose name is not that of the field in the command's own table.
ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "sparsify": {"max_drop": "max_drop"},
    "curve": {},
    "reduce": {},
    "train": {option: f"train.{field}" for option, field in FIELDS.items()},
}
SAID = re.compile(r"\[default: ([^\]]*)\]")


@pytest.mark.parametrize("command", ELSEWHERE)
def test_every_default_in_the_help_is_that_of_the_recipe(command: str) -> None:
    recipe = load_recipe(Path("nowhere/model.pt"))
    checked = 0
    for option in cli.commands[command].params:
        said = SAID.search(option.help or "") if isinstance(option, click.Option) else None
        if said is None or said[1] in ("none", "all"):
            continue
        name = str(option.name)
        top = name in ("seed", "device")
        value = attrgetter(name if top else ELSEWHERE[command].get(name, f"{command}.{name}"))(recipe)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        assert text.removesuffix(".0") == said[1], f"--{name}"
        checked += 1
    assert checked >= 5
