"""Code that the user names: the factory that builds a module, and the classes to trust in a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from compress.errors import ModelError
from compress.models.torchvision_compat import ensure_operators

_FORMS = "'package.module:name' or './file.py:name'"


def build(factory: str, args: Mapping[str, Any]) -> nn.Module:
    """Call ``factory`` with the keyword arguments ``args``.

    Args:
        factory: ``package.module:callable`` or ``./net.py:Net``. The current directory is importable.

    Raises:
        ModelError: it cannot be imported or called, raises, or returns something that is not an ``nn.Module``.
    """
    make = import_named(factory, option="--factory")
    if not callable(make):
        raise ModelError(
            f"--factory {factory} is a {type(make).__name__}, not a class or function that builds a model."
        )
    called = f"{factory}({', '.join(f'{name}={value!r}' for name, value in args.items())})"
    try:
        with importable_from(Path.cwd()):
            module = make(**args)
    except Exception as error:
        raise ModelError(
            f"--factory {called} failed with {_one_line(error)}. "
            "Give its arguments as JSON: --factory-args '{\"name\": value}'."
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"--factory {called} returned a {type(module).__name__}, not a torch.nn.Module.")
    return module


def source_of(factory: str | None) -> bytes:
    """The file that ``factory`` names, which the user may change under its name; empty for a package or for None."""
    file = Path((factory or "").rpartition(":")[0])
    return file.read_bytes() if file.suffix == ".py" and file.is_file() else b""


def import_named(spec: str, option: str) -> Any:
    """The object that ``spec`` names, as given to the command-line ``option``."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ModelError(f"{option} {spec!r} is not of the form {_FORMS}.")
    module = _import_file(Path(place), spec, option) if place.endswith(".py") else _import_module(place, spec, option)
    try:
        return getattr(module, name)
    except AttributeError:
        near = [known for known in vars(module) if known.lower() == name.lower()]
        hint = f" Did you mean {near[0]}?" if near else " Check the name after the colon."
        raise ModelError(f"{option} {spec}: {place} has no {name!r}.{hint}") from None


@contextlib.contextmanager
def importable_from(*folders: Path) -> Iterator[None]:
    """Put ``folders`` first on the import path for a while, as ``python file.py`` does with the folder of the file."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _import_module(name: str, spec: str, option: str) -> ModuleType:
    if name.partition(".")[0] == "torchvision":
        ensure_operators()
    try:
        with importable_from(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"{option} {spec}: importing {name} needs the module {error.name!r}. Install it."
            ) from error
        raise ModelError(
            f"{option} {spec}: there is no module {error.name!r}. Install it, or name the file: './file.py:name'."
        ) from None
    except Exception as error:
        raise ModelError(f"{option} {spec}: importing {name} failed with {_one_line(error)}.") from error


def _import_file(path: Path, spec: str, option: str) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"{option} {spec}: there is no file {path} (looked in {Path.cwd()}).")
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()
    name = f"_compress_user_{path.stem}_{digest[:12]}"
    if name in sys.modules:  # the same file is the same module: its classes must be equal each time
        return sys.modules[name]
    loading = importlib.util.spec_from_file_location(name, path)
    assert loading is not None
    assert loading.loader is not None
    module = importlib.util.module_from_spec(loading)
    sys.modules[name] = module  # dataclasses and pickle look there while the file runs
    try:
        with importable_from(path.parent):
            loading.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelError(f"{option} {spec}: running {path.name} failed with {_one_line(error)}.") from error
    return module


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.')}" if text else type(error).__name__
