"""What a model file is, told by its bytes and never by its name."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Literal

import onnx

from compress.errors import ModelError

Content = Literal["torch", "torch-legacy", "pickle", "torchscript", "exported", "safetensors", "onnx"]

# How torch.save began a file before its zip format (torch 1.6): its magic number, pickled.
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_SAVE = "Save the model with torch.save(model, path) and pass that file."
_DOWNLOAD = "Download it again: this is a page, not the model."
# (offset, magic, what it is, next step)
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x93NUMPY", "a NumPy array (.npy)", _SAVE),
    (0, b"\x1f\x8b", "gzip-compressed", "Unpack it with gunzip and pass the result."),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "HDF5, probably Keras weights",
        "Export it to ONNX with tf2onnx and pass the .onnx file.",
    ),
    (4, b"TFL3", "a TensorFlow Lite model", "Pass the PyTorch model or an .onnx file."),
    (0, b"GGUF", "a GGUF model", "Pass the PyTorch model or an .onnx file."),
    (257, b"ustar", "a tar archive", "Unpack it and pass the model file inside."),
)


def sniff(path: Path) -> Content:
    """Tell what ``path`` holds.

    Raises:
        ModelError: not a file, empty, cut short, or not a model; the message says what it is instead.
    """
    head = _read_head(path)
    if not head:
        raise ModelError(f"{path} is empty (0 bytes). Check that it was written or downloaded completely.")
    for offset, magic, what, step in _FOREIGN:
        if head[offset:].startswith(magic):
            raise ModelError(f"{path} is not a model: it is {what}. {step}")
    if head.startswith(b"PK"):
        return _sniff_zip(path)
    if head.startswith(LEGACY_TORCH):
        return "torch-legacy"
    if head[0] == 0x80 and head[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    _refuse_text(path, head)
    if head[8:9] == b"{":
        return _check_safetensors(path, head)
    return _check_onnx(path, head)


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Pass the model file inside it (.pt, .pth, .safetensors, .pt2 or .onnx).")
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist. Pass the path of a model file.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error


def _sniff_zip(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise ModelError(
            f"{path} is a zip archive that was cut short ({path.stat().st_size:,} bytes, its directory at the end is "
            f"missing). Copy or download it again."
        ) from None
    inner = {name.partition("/")[2] for name in names}  # torch puts everything in one folder
    if "models/model.json" in inner or "serialized_exported_program.json" in names:
        return "exported"
    if "constants.pkl" in inner:  # torch's own test
        return "torchscript"
    if "data.pkl" in inner:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        raise ModelError(f"{path} is not a model: it is a NumPy archive (.npz). {_SAVE}")
    shown = ", ".join(names[:3]) or "nothing"
    raise ModelError(f"{path} is a zip archive without a model in it (it holds {shown}). {_SAVE}")


def _check_safetensors(path: Path, head: bytes) -> Content:
    needed = 8 + struct.unpack("<Q", head[:8])[0]
    size = path.stat().st_size
    if needed > size:
        raise ModelError(
            f"{path} looks like safetensors that was cut short: its header alone needs {needed:,} bytes, the file has "
            f"{size:,}. Copy or download it again."
        )
    return "safetensors"


def _refuse_text(path: Path, head: bytes) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a git-lfs pointer, not the model itself. Fetch the file with: git lfs pull")
    try:
        text = head.decode("utf-8").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else: a character cut by the end of what was read
            return
        text = head[: error.start].decode("utf-8").lstrip()
    if any(character < " " and character not in "\t\r\n\f" for character in text):
        return
    if text.startswith("<"):
        raise ModelError(f"{path} is an HTML or XML page, not a model. {_DOWNLOAD}")
    raise ModelError(f"{path} is a text file (it begins {text[:30]!r}), not a model. {_SAVE}")


def _check_onnx(path: Path, head: bytes) -> Content:
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception:  # protobuf's DecodeError, which has no typed import
        if b"\x08\x01" <= head[:2] <= bytes([8, onnx.IR_VERSION]):  # field 1, ir_version: how every writer begins
            raise ModelError(
                f"{path} looks like an ONNX file that is damaged or cut short. Copy or export it again."
            ) from None
        raise ModelError(
            f"{path} is no known model format (it begins with the bytes {head[:8].hex(' ')}). {_SAVE}"
        ) from None
    if not model.opset_import or not model.graph.output:
        raise ModelError(f"{path} is no model: read as ONNX it has no graph with outputs or no opset. {_SAVE}")
    return "onnx"
