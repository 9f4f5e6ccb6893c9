"""Energy counters, on a powercap tree that the tests write."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest

from compress.errors import MeasurementError
from compress.measurement.energy import Codecarbon, Rapl, meter, note

RANGE = 262_143_328_850  # µJ, of a real package


def tree(root: Path, *microjoules: int) -> list[Path]:
    """A powercap tree as Linux shows it: packages, a part of each, and the platform around them."""
    packages = []
    for number, value in enumerate(microjoules):
        zones = {f"intel-rapl:{number}": f"package-{number}", f"intel-rapl:{number}:0": "core", "intel-rapl:9": "psys"}
        for name, kind in zones.items():
            zone = root / name
            zone.mkdir(parents=True, exist_ok=True)
            (zone / "name").write_text(f"{kind}\n")
            (zone / "energy_uj").write_text(f"{value}\n")
            (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
        packages.append(root / f"intel-rapl:{number}")
    (root / "intel-rapl").mkdir(exist_ok=True)
    return packages


def advance(package: Path, value: int) -> None:
    (package / "energy_uj").write_text(f"{value}\n")


def test_packages_are_added_up_and_neither_their_parts_nor_the_platform_are_counted_too(tmp_path: Path) -> None:
    first, second = tree(tmp_path, 1_000_000, 5_000_000)
    power = meter("rapl", tmp_path)
    assert isinstance(power, Rapl)
    power.start()
    advance(first, 3_000_000)
    advance(second, 5_500_000)
    advance(tmp_path / "intel-rapl:0:0", 9_000_000)
    advance(tmp_path / "intel-rapl:9", 9_000_000)
    assert power.stop() == 2_500  # mJ
    assert "idle machine included" in str(note("rapl", tmp_path))


def test_a_counter_that_starts_again_is_followed(tmp_path: Path) -> None:
    (package,) = tree(tmp_path, RANGE - 1_000)
    power = meter("auto", tmp_path)
    assert power is not None
    power.start()
    advance(package, 4_000)
    assert power.stop() == 5


def test_nothing_is_measured_and_nothing_said_where_it_was_not_asked_for(tmp_path: Path) -> None:
    tree(tmp_path, 1)
    assert meter("no", tmp_path) is None
    assert note("no", tmp_path / "absent") is None


def test_a_system_without_counters_says_so(tmp_path: Path) -> None:
    assert meter("rapl", tmp_path) is None
    assert note("rapl", tmp_path) == f"energy not measured: this system has no RAPL counters in {tmp_path}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_counters_that_only_root_may_read_are_said_to_be(tmp_path: Path) -> None:
    (package,) = tree(tmp_path, 1)
    (package / "energy_uj").chmod(0)
    assert meter("rapl", tmp_path) is None
    assert "sudo chmod a+r" in str(note("rapl", tmp_path))


def test_counters_that_cannot_be_read_name_the_mend(tmp_path: Path) -> None:
    (package,) = tree(tmp_path, 1)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()  # cannot be read, by root neither
    assert meter("rapl", tmp_path) is None
    told = note("rapl", tmp_path)
    assert told is not None
    assert told.startswith("energy not measured: the energy counter could not be read")
    assert f"sudo chmod a+r {tmp_path}/*/energy_uj" in told
    with pytest.raises(MeasurementError, match="could not be read"):
        Rapl([package]).start()


def test_codecarbon_that_is_not_installed_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert meter("codecarbon") is None
    assert "compress-pipeline[energy]" in str(note("codecarbon"))
    both = str(note("auto", tmp_path))
    assert "no RAPL counters" in both
    assert "codecarbon is not installed" in both


class Tracker:
    """As codecarbon's, of 2 Wh."""

    def __init__(self, **options: Any) -> None:
        assert options["save_to_file"] is False
        self.steps: list[str] = []

    def start(self) -> None:
        self.steps.append("start")

    def stop(self) -> float:
        self.steps.append("stop")
        self.final_emissions_data = types.SimpleNamespace(energy_consumed=0.002)
        return 0.1  # kg of CO2, which is not asked for


def test_codecarbon_that_fails_is_an_error_that_the_benchmark_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Tracker):
        def start(self) -> None:
            raise PermissionError("no counters\nfor you")

        def stop(self) -> float:
            raise KeyError

    monkeypatch.setattr("importlib.import_module", lambda name: types.SimpleNamespace(OfflineEmissionsTracker=Broken))
    power = Codecarbon()
    with pytest.raises(MeasurementError, match=r"^codecarbon cannot start: no counters$"):
        power.start()
    with pytest.raises(MeasurementError, match=r"^codecarbon found nothing: KeyError$"):
        power.stop()


def test_codecarbon_is_asked_where_there_are_no_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", lambda name: types.SimpleNamespace(OfflineEmissionsTracker=Tracker))
    power = meter("auto", tmp_path)
    assert isinstance(power, Codecarbon)
    assert "estimates it from the processor's model" in str(note("auto", tmp_path))
    power.start()
    assert power.stop() == pytest.approx(7.2e6)  # mJ
