"""What every picture shares: size, colours, short names, and bytes that are the same for the same figure.

matplotlib is imported inside functions, and pyplot never: no global state, no window, and a quick `compress --help`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from compress.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["svg", "png"]

# Okabe & Ito (2008) without its yellow, which white paper swallows: told apart with every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
QUIET = "#B4BAC4"  # what is drawn for comparison only
DOTS_PER_INCH = 120  # of PNG
# What matplotlib would write about itself and about today.
UNSIGNED = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
}


def new_figure(width: float = 7.0, height: float = 4.5) -> Figure:
    """An empty figure, sizes in inches, that arranges itself so that nothing overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def picture(figure: Figure, kind: Kind) -> bytes:
    """The file's content: the same figure gives the same bytes."""
    from matplotlib import rc_context

    content = io.BytesIO()
    # Text as outlines: the same picture where its font is missing. The salt fixes the names of an SVG's parts.
    with rc_context({"svg.hashsalt": "compress", "svg.fonttype": "path"}):
        figure.savefig(content, format=kind, dpi=DOTS_PER_INCH, metadata=UNSIGNED[kind])
    return content.getvalue()


def save_pictures(figure: Figure, directory: Path, name: str) -> tuple[str, ...]:
    """Write the figure as ``name``.svg and ``name``.png; returns the names of the files."""
    for kind in get_args(Kind):
        write_atomically(directory / f"{name}.{kind}", picture(figure, kind))
    return tuple(f"{name}.{kind}" for kind in get_args(Kind))


def inline_svg(figure: Figure) -> str:
    """The figure as an element to put into an HTML page."""
    return svg_element(picture(figure, "svg"))


def svg_element(svg: bytes) -> str:
    """An SVG file without its prologue, which an HTML page may not hold."""
    text = svg.decode()
    return text[text.index("<svg") :]


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def line_style(number: int) -> str:
    """Solid for the first round of the colours, then dashed, dotted, dash-dotted."""
    return ("-", "--", ":", "-.")[number // len(COLOURS) % 4]


def short(name: str, length: int = 28) -> str:
    """A layer's name in at most ``length`` characters: its longest words lose their ends, its numbers stay.

    Numbers are what tells layers apart: features.12.block.1.convolution becomes features.12.block.1.convolu…. Where
    even that is too long the middle goes.
    """
    if len(name) <= length:
        return name
    parts = name.split(".")
    for longest in range(max(map(len, parts)), 1, -1):
        shown = ".".join(part if len(part) <= longest else f"{part[: longest - 1]}…" for part in parts)
        if len(shown) <= length:
            return shown
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"


def tidy(axes: Axes) -> None:
    """Small figures, no frame at the top and the right, a pale grid behind the data."""
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    axes.title.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E3E6EB", linewidth=0.8)
    axes.set_axisbelow(True)
