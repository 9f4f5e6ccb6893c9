"""Numbers as people read them, always with their unit. Used by every report and by the console."""

from __future__ import annotations

from compress.units import signed as signed

NOTHING = "–"  # where there is no number


def size(count: int | None) -> str:
    """Bytes, in powers of 1000: 21.9 KB."""
    if count is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= 0.9995 * scale:  # what would be shown as 1000 of the smaller unit
            return f"{_three(count / scale)} {unit}"
    return f"{count} B"


def duration(milliseconds: float | None) -> str:
    """A latency: 330 µs, 2.57 ms, 1.20 s."""
    if milliseconds is None:
        return NOTHING
    if milliseconds < 0.9995:
        return f"{_three(milliseconds * 1e3)} µs"
    if milliseconds < 999.5:
        return f"{_three(milliseconds)} ms"
    return f"{_three(milliseconds / 1e3)} s"


def seconds(value: float) -> str:
    """How long a stage took: 4.2 s, 12 min 30 s."""
    if value < 59.95:  # what would be shown as 60.0
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def ratio(value: float | None) -> str:
    """A zip ratio or a speed-up: 41.2×."""
    return NOTHING if value is None else f"{_three(value)}×"


def fraction(value: float | None) -> str:
    """An accuracy, a fidelity or a drop: 0.8912."""
    if value is None:
        return NOTHING
    return signed(value).removeprefix("+")


def provider(name: str) -> str:
    """An execution provider without the words that all of them end with: CPU, CUDA (TF32)."""
    return name.replace("ExecutionProvider", "")


def percent(value: float | None) -> str:
    """A sparsity: 93.0 %."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def count(value: int | None) -> str:
    """Parameters, samples: 224,714."""
    return NOTHING if value is None else f"{value:,}"


def span(low: str, high: str) -> str:
    """An interval of two such texts, the unit once where it is the same: 278–285 µs, 3.91–4.08×."""
    number, _, unit = low.partition(" ")
    if low.endswith("×"):
        number, unit = low[:-1], "×"
    return f"{number}–{high}" if unit and high.endswith(unit) else f"{low}–{high}"


def _three(value: float) -> str:
    """Three significant digits, as many as a measurement is good for, without an exponent."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"
