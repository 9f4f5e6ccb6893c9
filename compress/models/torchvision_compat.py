"""Lets torchvision be imported where its compiled operators cannot load: a CUDA torchvision beside a CPU torch.

Without it ``import torchvision`` dies with "operator torchvision::nms does not exist". Models, transforms and data
sets need no compiled operator: only the schemas of two have to exist while the package is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_DECLARED: list[torch.library.Library] = []  # a Library takes its schemas back when it is collected


@functools.cache
def ensure_operators() -> str | None:
    """Make ``import torchvision`` possible. Call it before every import of torchvision; later calls cost nothing.

    Returns:
        One line that says what was mended, or None where nothing had to be.
    """
    if "torchvision" in sys.modules or _load_compiled_operators():
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _DECLARED.append(library)
    line = (
        "torchvision's compiled operators do not load beside this torch (usually a CUDA torchvision and a CPU torch): "
        "nms and qnms are declared in their place. Models, transforms and datasets work; detection operators do not."
    )
    logger.debug(line)
    return line


def _load_compiled_operators() -> bool:
    """Whether the installed torchvision has its operators; a torchvision that is absent needs no mend either."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for library in sorted(Path(spec.origin).parent.glob("_C.*")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError as error:
            logger.debug("torchvision's operators: %s", error)
    return hasattr(torch.ops.torchvision, "nms")
