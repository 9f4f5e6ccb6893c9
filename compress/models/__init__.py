"""Model files and modules: loading them safely, binding them to data, keeping their state."""

from compress.models.binding import FirstOutput, bind, check_labels
from compress.models.diagnosis import wanted_channels
from compress.models.factory import build, source_of
from compress.models.loading import Source, load, load_new
from compress.models.sniff import sniff
from compress.models.state import load_state, save_state
from compress.models.torchvision_compat import ensure_operators

__all__ = [
    "FirstOutput",
    "Source",
    "bind",
    "build",
    "check_labels",
    "ensure_operators",
    "load",
    "load_new",
    "load_state",
    "save_state",
    "sniff",
    "source_of",
    "wanted_channels",
]
