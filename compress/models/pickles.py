"""Reading torch.save files without running code from them.

torch's own weights-only unpickler does the reading; this module decides which globals it may have besides its own:

- an ``nn.Module`` class that torch or torchvision defines in one of ``_MODULE_PACKAGES``,
- an entry of ``_INERT``, a literal list of types that only hold values,
- a class that the user named (``--trust``).

No function is ever allowed, torch's own included: ``torch.storage._load_from_bytes`` and ``torch.hub.load`` run code.
So a whole ``nn.TransformerEncoderLayer``, which pickles ``torch.nn.functional.relu``, needs its weights and a factory.
"""

from __future__ import annotations

import argparse
import collections
import functools
import logging
import pickle
import pickletools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from compress.errors import ModelError, UntrustedPickleError
from compress.models.factory import import_named, importable_from
from compress.models.sniff import Content
from compress.models.torchvision_compat import ensure_operators

logger = logging.getLogger(__name__)

# Not all of torch: modules of fx, jit, package and distributed compile, or connect to, what their state says.
_MODULE_PACKAGES = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "torchvision.transforms.")
_RUNS_ITS_STATE = (fx.GraphModule, torch.jit.ScriptModule, nn.parallel.DistributedDataParallel)

# Types whose construction and state run nothing. A partial is inert too: it can only hold what is allowed here.
_INERT: dict[str, type] = {
    "functools.partial": functools.partial,
    "collections.defaultdict": collections.defaultdict,
    "argparse.Namespace": argparse.Namespace,
    **{f"builtins.{kind.__name__}": kind for kind in (bool, int, float, str, list, tuple, dict, frozenset, slice)},
}

Allowed = Callable[..., Any] | tuple[Callable[..., Any], str]  # as torch.serialization.safe_globals takes it

_SHOWN = 6  # names told in one message
_ADVICE = ("Weights only load failed", "(1)", "(2)")  # how lines of torch's messages begin that are not the reason


def load_pickle(
    path: Path, content: Content, *, trust: Sequence[str] = (), trust_pickle: bool = False, mapped: bool = False
) -> Any:
    """Read a pickled file onto the CPU.

    Args:
        content: "torch" (zip), "torch-legacy" (before torch 1.6: weights alone can be read) or "pickle" (pickle.dump).
        trust: classes that the pickle may use: ``package.module.Class``, exactly as the pickle names it, or
            ``./net.py:Class``, which stands for every otherwise refused class of that name (``__main__.Class``).
        trust_pickle: read what is refused with Python's own pickle, which runs whatever code the file holds.
        mapped: leave the values in the file until they are used (zip files only): it must not change meanwhile.

    Raises:
        UntrustedPickleError: the file wants something that is not allowed; nothing of it was called.
        ModelError: the file is damaged, or a class does not fit what was saved.
    """
    try:
        return _load_safely(path, content, trust, mapped)
    except UntrustedPickleError:
        if not trust_pickle:
            raise
    logger.warning("%s is read as a trusted pickle: code in it runs", path)
    with importable_from(Path.cwd(), path.resolve().parent):  # where the classes of a trusted file usually are
        if content == "pickle":
            return _guarded(path, lambda: pickle.loads(path.read_bytes()))
        return _guarded(path, lambda: torch.load(path, map_location="cpu", weights_only=False))


def _load_safely(path: Path, content: Content, trust: Sequence[str], mapped: bool) -> Any:
    if content == "pickle":
        raise UntrustedPickleError(_explain_plain_pickle(path))
    allowed = _allowed_globals(path, trust) if content == "torch" else []
    mapped = mapped and content == "torch"
    with torch.serialization.safe_globals(allowed):
        return _guarded(path, lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storages and changed sources: nothing that the user can act on
            return read()
    except pickle.UnpicklingError as error:
        raise UntrustedPickleError(
            f"{path} holds more than weights in a form that is not read ({_first_sentence(error)}). Where it was made, "
            f"save it again with torch.save(model.state_dict(), path) and pass --factory package.module:callable."
        ) from error
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read ({_first_sentence(error)}). It is damaged, or was saved with other versions of its "
            f"classes: copy it again, or save its state_dict() and pass --factory package.module:callable."
        ) from error


def _allowed_globals(path: Path, trust: Sequence[str]) -> list[Allowed]:
    """What to allow beyond torch's own list, each with the name that the pickle uses for it."""
    try:
        wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, EOFError):
        raise UntrustedPickleError(
            f"{path} holds a pickle that is damaged or not of protocol 2, the only one that is read without running "
            f"code. Save it again with torch.save(model, path)."
        ) from None
    except Exception as error:
        raise ModelError(f"{path} is damaged ({_first_sentence(error)}). Copy or download it again.") from error
    found = [(_resolve(name, trust), name) for name in wanted]
    refused = [name for kind, name in found if kind is None]
    if refused:
        raise UntrustedPickleError(_explain(path, refused))
    return [(kind, name) for kind, name in found if kind is not None]


def _resolve(name: str, trust: Sequence[str]) -> type | None:
    return _INERT.get(name) or _torch_module_class(name) or _trusted_class(name, trust)


def _torch_module_class(name: str) -> type | None:
    """The nn.Module class of torch or torchvision of that full name, or None.

    Only modules that torch and torchvision import by themselves are looked in: a file imports nothing. A name that
    leads to something else through a module's own imports (torch.nn.modules.module.os.system) finds no module.
    """
    if not name.startswith(_MODULE_PACKAGES):
        return None
    if name.startswith("torchvision."):
        ensure_operators()
        import torchvision  # noqa: F401  (fills sys.modules; slow, so only where a file needs it)
    module_name, _, class_name = name.rpartition(".")
    kind = getattr(sys.modules.get(module_name), class_name, None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module) or issubclass(kind, _RUNS_ITS_STATE):
        return None
    return kind if f"{kind.__module__}.".startswith(_MODULE_PACKAGES) else None


def _trusted_class(name: str, trust: Sequence[str]) -> type | None:
    class_name = name.rpartition(".")[2]
    for spec in trust:
        if spec.replace(":", ".") == name:
            kind = import_named(":".join(name.rsplit(".", 1)), option="--trust")
        elif spec.partition(":")[0].endswith(".py") and spec.rpartition(":")[2] == class_name:
            kind = import_named(spec, option="--trust")
        else:
            continue
        if not isinstance(kind, type):
            raise ModelError(
                f"--trust {spec} is a {type(kind).__name__}. Only a class can be trusted, never a function."
            )
        return kind
    return None


def _explain(path: Path, refused: Sequence[str]) -> str:
    mine = [name for name in refused if _could_be_trusted(name)]
    wants = f"{path} wants code that is not loaded from a pickle: {_some(refused)}."
    if len(mine) < len(refused):
        return (
            f"{wants}\nNo option but --trust-pickle, which runs code from the file, reads it. Safe: save the model's "
            f"state_dict() instead and pass --factory package.module:callable."
        )
    flags = " ".join(f"--trust {_flag(name)}" for name in mine)
    return (
        f"{wants}\nIf the code is yours: {flags}. Otherwise save the model's state_dict() and pass --factory "
        f"package.module:callable."
    )


def _flag(name: str) -> str:
    return f"./FILE.py:{name.rpartition('.')[2]}" if name.startswith("__main__.") else name


def _could_be_trusted(name: str) -> bool:
    """Whether to offer --trust: never for Python, torch or this package, where a refused name is a way to run code."""
    top = name.partition(".")[0]
    return top == "__main__" or (top not in sys.stdlib_module_names and top not in ("torch", "torchvision", "compress"))


def _explain_plain_pickle(path: Path) -> str:
    try:
        wants = f", which wants {_some(_globals_of(path))}"
    except Exception:  # damaged: what it wants cannot be told, and it is refused all the same
        wants = ""
    return (
        f"{path} is a plain pickle (pickle.dump){wants}: nothing of it is read without running its code. Save the "
        f"model with torch.save(model, path)."
    )


def _globals_of(path: Path) -> list[str]:
    """The globals in the first pickle of a file, found without running it; strings before STACK_GLOBAL name one."""
    found: set[str] = set()
    strings: list[str] = []
    with path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                found.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return sorted(found)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more


def _first_sentence(error: BaseException) -> str:
    """What happened, in a library's words; torch's advice to read the file unsafely is left out."""
    lines = [line.strip() for line in str(error).rpartition("WeightsUnpickler error:")[2].splitlines()]
    told = [line for line in lines if line and not line.startswith(_ADVICE)] or [type(error).__name__]
    return told[0].partition(". ")[0].rstrip(".")[:200]
