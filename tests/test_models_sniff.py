"""What a file is, told by its bytes: every bad one is refused with its name, what it is, and what to do."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from compress.errors import ModelError
from compress.models.sniff import sniff


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2), buffer)
    return buffer.getvalue()


def legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def onnx_bytes() -> bytes:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return onnx.helper.make_model(graph).SerializeToString()


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "truncated zip": (saved()[:-60], "cut short"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "text": (b"this is no model at all, it is prose", "text file"),
    "code": (b"function {\n}\n", "text file"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "npy": (npy(), ".npy"),
    "npz": (npz(), ".npz"),
    "gzip": (gzip.compress(b"model"), "gunzip"),
    "other zip": (zipped("word/document.xml"), "word/document.xml"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "Keras"),
    "truncated safetensors": (b"\xff\xff\x00\x00\x00\x00\x00\x00{" + b" " * 30, "cut short"),
    "truncated onnx": (onnx_bytes()[:-9], "damaged or cut short"),
    "random bytes": (bytes(range(255, 120, -1)), "no known model format"),
    "one byte": (b"\x08", "no"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_model_is_refused_in_two_lines_with_its_name_and_what_it_is(
    tmp_path: Path, kind: str
) -> None:
    content, told = BAD[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        sniff(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert told in message
    assert message.count("\n") <= 1
    assert "weights_only" not in message


GOOD = {
    "torch": saved(),
    "torch-legacy": legacy(),
    "pickle": pickle.dumps({"a": 1}),
    "safetensors": safetensors.torch.save({"a": torch.ones(2)}),
    "onnx": onnx_bytes(),
}


@pytest.mark.parametrize("content", GOOD)
def test_the_content_decides_whatever_the_name_says(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.txt"
    path.write_bytes(GOOD[content])
    assert sniff(path) == content


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        sniff(tmp_path / "no.pt")
    with pytest.raises(ModelError, match="is a folder"):
        sniff(tmp_path)
