"""The energy of a stretch of work: from the processor's own counters (RAPL), or as codecarbon tells.

RAPL counts what whole processor packages take, other programs and the idle machine included: nothing is subtracted.
codecarbon reads the same counters where it may, adds GPU and memory, and estimates from the model of the processor
where it cannot read.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any, Literal, Protocol

from compress.errors import MeasurementError, first_line

Energy = Literal["no", "auto", "rapl", "codecarbon"]

_POWERCAP = Path("/sys/class/powercap")
_ZONES = "*-rapl:[0-9]*"  # intel-rapl:0, intel-rapl:0:1, …; AMD's counters have Intel's name too
_MJ = 3.6e9  # of a kWh


class Meter(Protocol):
    """Started before the work and stopped after it."""

    note: str  # what a reader must know of its figures

    def start(self) -> None: ...

    def stop(self) -> float:
        """Millijoules since the start."""


def meter(energy: Energy, powercap: Path = _POWERCAP) -> Meter | None:
    """What measures energy here; None where nothing is asked for or nothing can: `note` says why."""
    if energy in ("auto", "rapl") and _why_no_rapl(powercap) is None:
        return Rapl(_packages(powercap))
    if energy in ("auto", "codecarbon") and _why_no_codecarbon() is None:
        return Codecarbon()
    return None


def note(energy: Energy, powercap: Path = _POWERCAP) -> str | None:
    """What a reader must know of the energy figures, or why there are none; None where they were not asked for."""
    if energy == "no":
        return None
    found = meter(energy, powercap)
    if found is not None:
        return found.note
    ways = {"rapl": (_why_no_rapl(powercap),), "codecarbon": (_why_no_codecarbon(),)}
    reasons = ways.get(energy, (_why_no_rapl(powercap), _why_no_codecarbon()))
    return f"energy not measured: {'; '.join(reason for reason in reasons if reason)}"


class Rapl:
    """The counters of all processor packages.

    Args:
        packages: A directory each, with energy_uj and max_energy_range_uj.
    """

    note = "energy: of the whole processor packages (RAPL), other programs and the idle machine included"

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._before: list[int] = []

    def start(self) -> None:
        self._before = self._read()

    def stop(self) -> float:
        pairs = zip(self._packages, self._before, self._read(), strict=True)
        return sum(_passed(package, before, after) for package, before, after in pairs) / 1000

    def _read(self) -> list[int]:
        try:
            return [int((package / "energy_uj").read_text()) for package in self._packages]
        except (OSError, ValueError) as error:
            raise MeasurementError(f"the energy counter could not be read: {error}") from error


def _passed(package: Path, before: int, after: int) -> int:
    """Microjoules between two readings of a counter that starts again at 0 after its range."""
    return after - before if after >= before else after - before + int((package / "max_energy_range_uj").read_text())


class Codecarbon:
    """codecarbon's tracker of this machine, without its network look-ups and files."""

    note = (
        "energy: of the whole machine as codecarbon tells, which estimates it from the processor's model where it may "
        "not read the counters"
    )

    def __init__(self) -> None:
        self._tracker: Any = None

    def start(self) -> None:
        try:
            codecarbon: Any = importlib.import_module("codecarbon")
            logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it talks before it reads its own log_level
            self._tracker = codecarbon.OfflineEmissionsTracker(
                country_iso_code="USA",  # decides emissions, which are not used
                measure_power_secs=1,
                save_to_file=False,
                log_level="critical",
                tracking_mode="machine",
            )
            self._tracker.start()
        except Exception as error:  # it asks all sorts of hardware and files
            raise MeasurementError(f"codecarbon cannot start: {first_line(error)}") from error

    def stop(self) -> float:
        try:
            self._tracker.stop()
            return float(self._tracker.final_emissions_data.energy_consumed) * _MJ
        except Exception as error:
            raise MeasurementError(f"codecarbon found nothing: {first_line(error)}") from error


def _packages(powercap: Path) -> list[Path]:
    """The packages' directories, and neither those of their parts (cores, memory) nor that of the platform around."""
    names = {path: path / "name" for path in powercap.glob(_ZONES)}
    return sorted(path for path, name in names.items() if name.is_file() and name.read_text().startswith("package"))


def _why_no_rapl(powercap: Path) -> str | None:
    packages = _packages(powercap)
    if not packages:
        return f"this system has no RAPL counters in {powercap}"
    try:
        Rapl(packages).start()
    except MeasurementError as error:
        return f"{error}; allow it with: sudo chmod a+r {powercap}/*/energy_uj"
    return None


def _why_no_codecarbon() -> str | None:
    found = importlib.util.find_spec("codecarbon")
    return None if found else "codecarbon is not installed: pip install 'compress-pipeline[energy]'"
