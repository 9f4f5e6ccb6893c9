"""The shape of the code itself: imports point one way, files stay small, --help stays quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compress

ROOT = Path(compress.__file__).parent
# A part may import from its own level's list and from every lower one. Parts of one level never import each other,
# but for those that are listed together in BESIDE.
LEVELS = (
    ("errors", "values", "files", "quiet", "units"),
    ("models", "data"),
    ("training", "measurement"),
    ("pruning", "sparsity", "quantization", "onnx_export"),
    ("reporting",),
    (
        *("workspace", "recipe", "checkpoint", "verify", "opening", "shipping", "demo", "speed"),
        *("integrity", "comparing", "experiments"),
    ),
    ("pipeline",),
    ("cli",),
)
BESIDE = {LEVELS[0], LEVELS[1], LEVELS[2], LEVELS[5]}
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def level_of(part: str) -> int:
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def imports_of(path: Path) -> Iterator[str]:
    """Parts of compress that a file imports when it runs (not for type checking alone)."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("compress"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("compress."))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in ("__init__", "__main__"):
        return
    for other in imports_of(path):
        if other == part or other.startswith("__"):
            continue
        assert level_of(other) <= level_of(part), f"{part} imports {other}, which is above it"
        if level_of(other) == level_of(part):
            assert LEVELS[level_of(part)] in BESIDE, f"{part} imports {other}, its sibling"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_stays_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_the_command_line_prints(path: Path) -> None:
    if part_of(path) == "cli":
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def test_help_imports_neither_torch_nor_onnxruntime() -> None:
    code = (
        "import sys\nfrom compress.cli import main\n"
        "try: main(['pipeline', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_imported() -> None:
    for name in compress.__all__:
        assert getattr(compress, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = compress.nothing_like_that
