"""Reading programs, TorchScript and .pt2, without letting them run code or touch files.

torch.export.load trusts its file: an operator of the graph may be any attribute path under ``torch`` (such as
``torch.os.system``), shape expressions and guards go through ``eval``, names into generated source, and some tensors
are pickled. So the archive is checked first, and what is not of the plain form that torch.export.save writes is
refused.

TorchScript is interpreted and reaches no Python, but two of torch's operators write files: both are refused.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import ModelError, UntrustedPickleError
from compress.values import InputSpec

logger = logging.getLogger(__name__)

# Members that torch.export.save writes, below the archive's folder; the last line is the layout before torch 2.8.
_PICKLED = re.compile(
    r"data/(weights|constants|sample_inputs)/model\.pt"
    r"|serialized_(state_dict|constants|example_inputs)\.(pt|json)"
)
_PROGRAM = re.compile(r"models/model\.json|data/(weights|constants)/model_(weights|constants)_config\.json")
_OLD_PROGRAM = re.compile(r"serialized_exported_program\.json")
_PLAIN = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|extra/.*|extra_files/.*"
    r"|archive_format|archive_version|version|byteorder|\.data/\w+|\.format_version|\.storage_alignment"
)

_ARITHMETIC = "getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_"
_OPERATOR = re.compile(
    r"torch\.ops\.(aten\.(?!__|from_file|save)|prims\.|torchvision\.|quantized_decomposed\.)\w+\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    rf"|_operator\.({_ARITHMETIC})|math\.[a-z]\w*|torch\.sym_\w+"
)
_NAME = re.compile(r"[\w .+-]*")
_FIELDS: dict[str, re.Pattern[str]] = {  # what a string may be in these fields; in all others a _NAME
    "target": _OPERATOR,
    "as_operator": _OPERATOR,
    "type": re.compile(r"[a-z]+|builtins\.(tuple|list|dict)|collections\.OrderedDict"),
}
_JSON_FIELDS = ("in_spec", "out_spec", "context")  # JSON in a string
_UNREAD = ("metadata", "opset_version", "as_string", "as_strings")  # shown, looked up or quoted: never run
_EXPRESSION_FIELDS = ("expr_str", "guards_code")
# Symbols, arithmetic, L['args'][0][0].size()[0], and calls of the functions named here.
_TOKEN = re.compile(r"\s+|'\w+'|\.size\(\)|\d+(?:\.\d+)?|(?P<word>[A-Za-z_]\w*)|[-+*/%<>=!&|~,()\[\]]")
_WORD = re.compile(
    r"[su]\d+|zuf\d+|Symbol|Integer|Rational|Float|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing"
    r"|Where|Pow|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|CeilToInt|FloorToInt|RoundToInt|TruncToInt|ToFloat"
    r"|Equality|Unequality|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|Abs|floor|ceiling|true|false"
    r"|Identity|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|positive|nonnegative|integer|True|False|None|L|int_oo|and|or|not"
)


# torch.save and torch.from_file, also spelled with escapes in getattr.
_WRITES_FILES = re.compile(r"\b(?:save|from_file)\b|\bgetattr\b[^\n]*\\")


def load_torchscript(path: Path, *, trust_pickle: bool = False) -> nn.Module:
    """Read a TorchScript archive onto the CPU.

    Raises:
        UntrustedPickleError: its code writes files; nothing of it was run.
        ModelError: it is damaged.
    """
    try:
        if not trust_pickle:
            _check_script(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated: reading what exists is still right
            module: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return module
    except UntrustedPickleError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} is TorchScript that cannot be read ({_first_line(error)}). Copy it again, or save it again."
        ) from error


def _check_script(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if "/code/" in member.filename.lower() and not member.filename.endswith(".debug_pkl"):
                found = _WRITES_FILES.search(archive.read(member).decode("utf-8", errors="replace"))
                if found:
                    raise UntrustedPickleError(
                        f"{path} is TorchScript that could write files: {member.filename} has {found[0]!r}.\nIf you "
                        f"trust the file, pass --trust-pickle."
                    )


def load_exported(path: Path, *, trust_pickle: bool = False) -> torch.export.ExportedProgram:
    """Read an exported program.

    Raises:
        UntrustedPickleError: the archive is not of the plain form that can run nothing; nothing of it was loaded.
        ModelError: it is damaged or of a version that this torch does not read.
    """
    if not trust_pickle:
        _check(path)
    try:
        with path.open("rb") as file:
            return torch.export.load(file)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as an exported program ({_first_line(error)}). Export it again with this torch "
            f"({torch.__version__}): torch.export.save(torch.export.export(model, inputs), path)."
        ) from error


def exported_inputs(program: torch.export.ExportedProgram) -> tuple[InputSpec, ...] | None:
    """The user inputs, from the example inputs that were saved with the program; None where there are none."""
    if program.example_inputs is None:
        return None
    args, kwargs = program.example_inputs
    values = [*args, *kwargs.values()]
    names = program.graph_signature.user_inputs
    if len(values) != len(names) or not all(isinstance(value, torch.Tensor) and value.ndim > 0 for value in values):
        return None
    return tuple(
        InputSpec(str(name), tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
        for name, value in zip(names, values, strict=True)
    )


def _check(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len({name.lower() for name in names}) < len(names):  # readers differ in which of the two they take
                raise _refusal(path, "it has two members of one name")
            for name in names:
                _check_member(path, archive, name)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ModelError(f"{path} is damaged ({error}). Copy or download it again.") from error


def _check_member(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    inner = name if name.startswith(("serialized_", "extra_files/")) or "/" not in name else name.partition("/")[2]
    if _PICKLED.fullmatch(inner):
        _check_pickled(path, name, archive.read(name))
    elif _PROGRAM.fullmatch(inner) or _OLD_PROGRAM.fullmatch(inner):
        _check_program(path, json.loads(archive.read(name)), field=inner)
    elif not _PLAIN.fullmatch(inner):
        raise _refusal(path, f"the member {name!r} is not one that torch.export.save writes for a plain program")


def _check_pickled(path: Path, name: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refusal(path, f"its member {name!r} holds more than tensors") from error


def _check_program(path: Path, value: Any, field: str) -> None:
    """Refuse any string in the program that could become code."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_text(path, key, field="")
            if key not in _UNREAD:
                _check_program(path, inner, field=key)
    elif isinstance(value, list):
        for inner in value:
            _check_program(path, inner, field)
    elif isinstance(value, str):
        _check_text(path, value, field)
    elif field == "use_pickle" and value:
        raise _refusal(path, "a tensor in it is pickled")


def _check_text(path: Path, text: str, field: str) -> None:
    if field in _JSON_FIELDS and text.startswith(("[", "{")):
        _check_program(path, json.loads(text), field)
    elif not (_is_expression(text) if field in _EXPRESSION_FIELDS else _FIELDS.get(field, _NAME).fullmatch(text)):
        raise _refusal(path, f"its program has {text[:60]!r} as {field!r}")


def _is_expression(text: str) -> bool:
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token["word"] and not _WORD.fullmatch(token["word"])):
            return False
        position = token.end()
    return True


def _refusal(path: Path, why: str) -> UntrustedPickleError:
    return UntrustedPickleError(
        f"{path} is an exported program that could run code when loaded: {why}.\nExport the model to ONNX where it was "
        f"made and pass the .onnx file, or, if you trust the file, pass --trust-pickle."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
