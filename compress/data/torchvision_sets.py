"""Data sets that torchvision knows how to fetch: where they lie, and what to say when they cannot be had."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from compress.data.options import DataOptions
from compress.errors import DataError

logger = logging.getLogger(__name__)


def data_root(options: DataOptions) -> Path:
    """The folder that data sets are looked for in and downloaded to: ``options.root``, or the user's cache."""
    if options.root is not None:
        return options.root
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "compress" / "data"


def open_torchvision(class_name: str, train: bool, options: DataOptions, advice: str) -> Any:
    """``torchvision.datasets.<class_name>`` in ``data_root``, downloaded only where ``options.download`` allows it.

    Raises:
        DataError: not there, broken or not to be downloaded; ends with ``advice``.
    """
    from compress.models.torchvision_compat import ensure_operators

    ensure_operators()
    from torchvision import datasets

    root = data_root(options)
    logger.info("reading torchvision's %s in %s (download: %s)", class_name, root, options.download)
    try:
        return getattr(datasets, class_name)(root, train=train, download=options.download)
    except (RuntimeError, OSError, EOFError) as error:  # urllib's errors are OSErrors
        attempt = "download failed" if options.download else "not found, and downloading is not allowed"
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{class_name} in {root}: {attempt} ({cause}). {advice}") from error
