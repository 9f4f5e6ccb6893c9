"""``images:DIR``: image files in one folder a class, decoded when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from compress.data.options import DataOptions
from compress.data.partition import Pools
from compress.data.preprocessing import ImagePreprocessing
from compress.data.samples import Samples, assemble
from compress.data.splits import Batch, Data
from compress.errors import DataError
from compress.values import InputSpec

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
VALIDATION_NAMES = ("val", "valid", "validation")
CACHE_BYTES = 256 * 2**20  # decoded images kept in memory
HASHED_FILES = 10_000  # more than these are told apart by name and size

# What PIL raises for a file that is no image, cut short, or absurdly large
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFile:
    """One sample."""

    path: Path
    label: int


def load(target: str, options: DataOptions) -> Data:
    """Images (N, C, H, W) scaled to 0..1; the classes are the folders' names in sorted order.

    ``DIR/<class>/…`` is one set to be split; ``DIR/train/<class>/…`` with ``val``, ``valid`` or ``validation``,
    and/or ``test`` beside it are splits of their own. With ``labels=False`` the images may lie in any depth.
    The sha256 covers the files' contents up to 10,000 files, above that their names and sizes.

    Raises:
        DataError: no or empty classes, files that are no images (named), unequal sizes without ``size``.
    """
    root = Path(target).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. --data images:DIR names a folder with one folder of images a class.")
    folders = _pool_folders(root)
    names = _class_names(folders[0]) if options.labels else ()
    parts = [_files(folder, names) if folder else [] for folder in folders]
    files = [file for part in parts for file in part]
    channels = options.channels or 3
    height, width = (options.size, options.size) if options.size else _common_size(files)
    decode = lru_cache(maxsize=max(1, CACHE_BYTES // (channels * height * width)))(
        _decoder(files, channels, options.size)
    )
    prepare = ImagePreprocessing.of(options)

    def fetch(indices: NDArray[np.int64]) -> Batch:
        images = np.stack([decode(int(index)) for index in indices])  # (N, C, H, W) uint8
        labels = torch.tensor([files[index].label for index in indices]) if options.labels else None
        return (prepare(torch.from_numpy(images)),), labels

    first = fetch(np.zeros(1, dtype=np.int64))[0][0]
    samples = Samples(
        name=f"images:{root.name}",
        fetch=fetch,
        pools=Pools(*(len(part) for part in parts)),
        inputs=(InputSpec("input", tuple(first.shape[1:])),),
        content=_digest(root, files),
        classes=len(names) if options.labels else None,
        class_names=names,
    )
    return assemble(samples, options)


def _pool_folders(root: Path) -> tuple[Path, Path | None, Path | None]:
    """The folders of train, validation and test; root itself is train where it is not divided."""
    validation = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    test = root / "test" if (root / "test").is_dir() else None
    if (root / "train").is_dir() and (validation or test):
        return root / "train", validation, test
    return root, None, None


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise DataError(
            f"{folder}: no class folders in it. Put the images into one folder a class, or use them without labels "
            "(--no-labels)."
        )
    return names


def _files(folder: Path, names: tuple[str, ...]) -> list[ImageFile]:
    """The images of one pool in sorted order; without class names those of any depth."""
    if not names:
        return [ImageFile(path, 0) for path in _images(folder)]
    unknown = sorted(set(_class_names(folder)) - set(names))
    if unknown:
        raise DataError(f"{folder}: the classes {', '.join(unknown)} are not among train's: {', '.join(names)}.")
    present = [(label, folder / name) for label, name in enumerate(names) if (folder / name).is_dir()]
    return [ImageFile(path, label) for label, class_folder in present for path in _images(class_folder)]


def _images(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))}). Add some, or remove the folder.")
    return paths


def _common_size(files: list[ImageFile]) -> tuple[int, int]:
    """Height and width of every image, read from the files' heads."""
    first = _image_size(files[0].path)
    for file in files[1:]:
        size = _image_size(file.path)
        if size != first:
            raise DataError(
                f"{file.path} is {size[0]}x{size[1]} and {files[0].path.name} {first[0]}x{first[1]} pixels. "
                "Give the size that the model takes with --size."
            )
    return first


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _decoder(files: list[ImageFile], channels: int, size: int | None) -> Callable[[int], NDArray[np.uint8]]:
    mode = "L" if channels == 1 else "RGB"

    def decode(index: int) -> NDArray[np.uint8]:
        path = files[index].path
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):  # PIL would cut these at 255 instead of scaling
                    raise ValueError(f"{image.mode} samples: more than 8 bits a channel, save it with 8")
                converted = image.convert(mode)
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        if size is not None:
            converted = converted.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(converted)  # (H, W, C), grey (H, W)
        return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)  # (C, H, W)

    return decode


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable image ({error}). Replace or remove the file.")


def _digest(root: Path, files: list[ImageFile]) -> str:
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.path.relative_to(root).as_posix()} {file.label} {file.path.stat().st_size} ".encode())
        if len(files) <= HASHED_FILES:
            sha.update(file.path.read_bytes())
    return sha.hexdigest()
