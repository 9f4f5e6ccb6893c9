"""What options take. Each kind checks its value, suggests the nearest where it does not fit, and completes in a shell.

No heavy import: --help and the completion of the shell must be quick.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

# What people type for what there is, where the letters alone would not tell.
SYNONYMS: Mapping[str, str] = {
    "apple": "coreml",
    "arm64": "arm",
    "fast": "latency",
    "gpu": "cuda",
    "intel": "openvino",
    "none": "no",
    "nvidia": "cuda",
    "off": "no",
    "small": "size",
    "speed": "latency",
    "trt": "tensorrt",
    "vnni": "avx512-vnni",
    "x86": "any-x86",
}


def nearest(given: str, known: Iterable[str]) -> str | None:
    """What was most likely meant, or None. Upper case, and _ for -, are no difference."""
    known, plain = tuple(known), given.lower().replace("_", "-")
    if plain in known:
        return plain
    if SYNONYMS.get(plain) in known:
        return SYNONYMS[plain]
    near = difflib.get_close_matches(plain, known, n=1)
    return near[0] if near else None


def suggestion(given: str, known: Iterable[str]) -> str:
    """The end of an error: " Did you mean 'cuda'?", or nothing."""
    near = nearest(given, known)
    return f" Did you mean {near!r}?" if near else ""


def _starting(values: Iterable[str], incomplete: str, before: str = "") -> list[CompletionItem]:
    return [CompletionItem(f"{before}{value}") for value in values if value.startswith(incomplete)]


class OneOf(click.Choice):  # type: ignore[type-arg]  # click before 8.2 cannot be subscripted
    """One of a few words."""

    def __init__(self, values: Sequence[str], metavar: str | None = None) -> None:
        super().__init__(list(values))
        self._metavar = metavar

    def get_metavar(self, param: click.Parameter, *args: Any, **context: Any) -> str | None:
        """The words themselves, but where they are too many for a line of --help."""
        return self._metavar or super().get_metavar(param, *args, **context)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            hint = suggestion(str(value), self.choices)
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}.{hint}", param, ctx)
        return str(value)


class Words(click.ParamType):  # type: ignore[type-arg]  # click before 8.5 cannot be subscripted
    """Words separated by commas, each one of those known."""

    name = "NAME,NAME,…"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(part.strip() for part in str(value).split(","))
        for word in words:
            if word not in self._known:
                self.fail(
                    f"{word!r} is not one of {', '.join(self._known)}.{suggestion(word, self._known)}", param, ctx
                )
        return words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return _starting(self._known, last, before + comma)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # click before 8.5 cannot be subscripted
    """Numbers separated by commas."""

    name = "N,N,…"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1,8", param, ctx)


class Shares(click.ParamType):  # type: ignore[type-arg]  # click before 8.5 cannot be subscripted
    """Shares 0..1 by name, separated by commas or spaces."""

    name = "LAYER=SHARE,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        try:
            pairs = [part.rsplit("=", 1) for part in str(value).replace(",", " ").split()]
            return {name: float(share) for name, share in pairs}
        except ValueError:
            self.fail(f"{value!r} is not a list such as conv1=0.65,conv2=0.95", param, ctx)


class Json(click.ParamType):  # type: ignore[type-arg]  # click before 8.5 cannot be subscripted
    """A JSON object."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            parsed: Any = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('not a JSON object such as {"num_classes": 10}', param, ctx)
        return parsed


class Source(click.ParamType):  # type: ignore[type-arg]  # click before 8.5 cannot be subscripted
    """A data source by its name, or by the prefix that tells how a file or a directory is read.

    Values pass as they are: `compress.data.load_data` refuses those that it does not know, in a recipe file too.
    """

    name = "SOURCE"

    def __init__(self, names: Sequence[str], prefixes: Mapping[str, str]) -> None:
        """``prefixes``: prefix -> the kind of path after it for the shell, "file" or "dir"; "" for none."""
        self._names, self._prefixes = names, prefixes

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        prefix, colon, path = incomplete.partition(":")
        if colon:
            kind = self._prefixes.get(prefix, "")
            return [CompletionItem(path, type=kind)] if kind else []
        return _starting((*self._names, *(f"{name}:" for name in self._prefixes)), incomplete)
