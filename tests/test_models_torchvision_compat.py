"""torchvision imports beside any torch, and the mend says whether it was needed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from compress.models.torchvision_compat import ensure_operators
line = ensure_operators()
assert ensure_operators() == line
import torchvision
from torchvision import datasets, transforms
assert torchvision.models.resnet18(weights=None)
import torch
assert torch.ops.torchvision.nms
print(line)
ensure_operators.cache_clear()
print(ensure_operators())
"""


def test_torchvision_imports_after_the_mend_which_says_whether_it_was_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, told_once_imported = done.stdout.splitlines()
    compiled = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    assert (told == "None") == (compiled.returncode == 0)
    assert told_once_imported == "None"
