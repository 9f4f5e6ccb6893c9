"""The files of benchmarks/peers that a script is made of, and how many lines of them a user has to write."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent
PACKAGE = "benchmarks.peers"
# What a user need not write: it reads what this benchmark gives, and tells it what was made.
FOR_THE_BENCHMARK = ("points", "task")

_NO_CODE = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
)


def files_of(script: str, folder: Path = FOLDER) -> tuple[Path, ...]:
    """``script`` and all of this folder that it imports, by however many steps, sorted."""
    found: set[str] = set()
    waiting = [script]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imported((folder / f"{name}.py").read_text())
    return tuple(folder / f"{name}.py" for name in sorted(found))


def _imported(source: str) -> Iterable[str]:
    """Names of this folder's modules that ``source`` imports, as all of them do: from benchmarks.peers.NAME import …"""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{PACKAGE}."):
            yield node.module.removeprefix(f"{PACKAGE}.")


def user_lines(scripts: Iterable[str], folder: Path = FOLDER) -> int:
    """Lines of code that a user of ``scripts`` has to write, what they share counted once."""
    files = {path for script in scripts for path in files_of(script, folder) if path.stem not in FOR_THE_BENCHMARK}
    return sum(code_lines(path.read_text()) for path in files)


def code_lines(source: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    spans = ((token.start[0], token.end[0]) for token in tokens if token.type not in _NO_CODE)
    lines = {line for first, last in spans for line in range(first, last + 1)}
    return len(lines - _docstring_lines(source))


def _docstring_lines(source: str) -> set[int]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    strings = [node.body[0] for node in nodes if ast.get_docstring(node, clean=False) is not None]
    return {line for one in strings for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)}
