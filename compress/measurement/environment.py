"""The machine and the libraries that numbers come from, and what is known to go wrong with them.

Neither torch nor onnxruntime is imported here at the top: `compress doctor` must work where one of them is broken.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpuinfo

from compress import __version__

logger = logging.getLogger(__name__)

# The kernel's CPU flag -> the name that people know. Those that decide how fast int8 is.
_ISA = {
    "sse4_1": "sse4.1",
    "avx": "avx",
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512vnni": "vnni",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "avxvnni": "vnni",
    "amx_int8": "amx",
    "amx_bf16": "amx-bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "sve": "sve",
}

# What macOS calls them on Apple silicon, where cpuinfo finds no flags (M1: dot products, from M2 on also i8mm).
_APPLE = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}
_ARM = ("arm64", "aarch64")

# Each brings the module onnxruntime, with other execution providers.
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")

# A module -> the distributions that may bring it, in the order in which they are looked for.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "onnx": ("onnx",),
    "onnxruntime": _RUNTIMES,
}

_OLDEST_SAFE_TORCH = (2, 6)
_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Trouble:
    """Something about this machine that is known to bite, and what to do about it."""

    what: str
    mend: str


@dataclass(frozen=True)
class ProviderState:
    """Whether an execution provider runs here."""

    key: str  # what --providers takes
    name: str  # ONNX Runtime's
    runs: bool  # proved with a tiny model
    told: str  # that it runs, and in what arithmetic, or why it does not
    mend: str = ""  # what to do about it


def environment(threads: int) -> dict[str, Any]:
    """What a reader needs to judge or repeat a measurement, as plain values.

    Args:
        threads: What ONNX Runtime was told to use for each operator; 0: every core that is available.
    """
    brand, flags = _cpu()
    return {
        "cpu": brand,
        "isa": _isa(flags),
        "machine": platform.machine(),
        "cores": available_threads(),
        "threads": threads or available_threads(),
        **{name: found for name, found in _clock(_CPUS).items() if found is not None},
        **({"gpu": list(_gpus())} if _gpus() else {}),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        **{module: _loaded(module) or _version(*names) or "not installed" for module, names in _DISTRIBUTIONS.items()},
        "compress": __version__,
    }


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, on average; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # AttributeError: Windows
        return None


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets of this processor that decide how int8 runs: avx2, vnni, amx, dotprod, …"""
    return tuple(_isa(_cpu()[1]))


def saturates() -> bool:
    """Whether int8 products may saturate here: on x86 without VNNI, where two of them are added in 16 bits."""
    isa = instruction_sets()
    return "sse4.1" in isa and "vnni" not in isa


def available_threads() -> int:
    """Cores that this process may really use: the smaller of its affinity and its cgroup's quota, at least 1."""
    quota = _quota(_CGROUPS, _OWN_CGROUP)
    return _affinity() if quota is None else max(1, min(_affinity(), int(quota)))


def providers() -> list[str]:
    """ONNX Runtime's names of the execution providers that run a tiny model here: listed ones may fail to load."""
    return list(dict.fromkeys(found.name for found in provider_states() if found.runs))


def provider_states() -> list[ProviderState]:
    """For each provider that can be asked for, whether it runs a tiny model here, and if not, why and what to do."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    from compress.measurement.sessions import PROVIDERS, trial

    built = onnxruntime.get_available_providers()
    states = []
    for key, row in PROVIDERS.items():
        if row.name not in built:
            states.append(
                ProviderState(key, row.name, False, "not in this build of onnxruntime", f"To get it: {row.install}")
            )
        elif reason := trial(key):
            states.append(ProviderState(key, row.name, False, f"present, but fails: {reason}", f"It needs {row.needs}"))
        else:
            states.append(ProviderState(key, row.name, True, ", ".join(filter(None, ("runs", row.precision)))))
    return states


def troubles() -> list[Trouble]:
    """The known troubles that this machine has."""
    checks = (
        _old_torch,
        _missing_operators,
        _two_onnxruntimes,
        _retired_tools,
        _cuda_on_one_side,
        _no_vnni,
        _quota_below_cores,
    )
    return [found for check in checks if (found := check()) is not None]


def _clock(cpus: Path) -> dict[str, str | bool | None]:
    """How the first core's clock is chosen (performance, powersave, …), and whether it may rise above the nominal one
    for a while; None where it cannot be read."""
    off, boost = _read(cpus / "intel_pstate/no_turbo"), _read(cpus / "cpufreq/boost")
    turbo = (None if boost is None else boost == "1") if off is None else off == "0"
    return {"governor": _read(cpus / "cpu0/cpufreq/scaling_governor"), "turbo": turbo}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


@functools.cache
def _cpu() -> tuple[str, frozenset[str]]:
    """Brand and flags; asking the system takes about a second."""
    info = cpuinfo.get_cpu_info()
    flags = {*info.get("flags", ()), *_arm_flags(platform.system(), platform.machine().lower())}
    return str(info.get("brand_raw") or platform.processor() or "unknown"), frozenset(flags)


def _arm_flags(system: str, machine: str) -> set[str]:
    """What every 64-bit ARM has, and on macOS what the system tells."""
    if machine not in _ARM:
        return set()
    told = {flag for name, flag in _APPLE.items() if _sysctl(name) == "1"} if system == "Darwin" else set()
    return {"asimd", *told}


def _sysctl(name: str) -> str:
    return _told("sysctl", "-n", name)


@functools.cache
def _gpus() -> tuple[str, ...]:
    """The NVIDIA devices, their drivers and their power limits, as the driver's own tool tells; none without it."""
    told = _told("nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader")
    return tuple(", driver ".join(line.split(", ", 1)) for line in told.splitlines())


def _told(*command: str) -> str:
    """What a command prints; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _isa(flags: frozenset[str]) -> list[str]:
    return list(dict.fromkeys(name for flag, name in _ISA.items() if flag in flags))


def _loaded(module: str) -> str | None:
    """The version of a module that is in use: of two distributions that bring it, one alone is."""
    version = getattr(sys.modules.get(module), "__version__", None)
    return None if version is None else str(version)


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path, own: Path) -> float | None:
    """CPUs that the cgroups of this process allow, None where there is no limit.

    A limit holds for everything below it, so the smallest on the way from the process's own group up to ``root``
    counts. Both versions are read: a v2 group has cpu.max, a v1 group has a quota and a period.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        hierarchy = root / "cpu" if controllers else root
        folder = hierarchy / group.strip().lstrip("/")
        # In a container the group's own path may not exist: its files are then those of the hierarchy's root.
        for level in (folder, *folder.parents):
            found.append(_limit(level))
            if level == hierarchy:
                break
    return min((limit for limit in found if limit is not None), default=None)


def _limit(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _old_torch() -> Trouble | None:
    version = _version("torch")
    if version is None:
        return Trouble("torch is not installed.", "pip install 'torch>=2.6'")
    if tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST_SAFE_TORCH:
        return None
    return Trouble(
        f"torch {version}: its weights_only loading can be made to run code (CVE-2025-32434).",
        "pip install 'torch>=2.6'",
    )


def _missing_operators() -> Trouble | None:
    try:
        from compress.models.torchvision_compat import ensure_operators

        mended = ensure_operators()
    except Exception as error:  # a broken torch fails in any way it likes, and this command is there to say so
        return Trouble(f"torch cannot be imported: {error}", "Install torch again: pip install --force-reinstall torch")
    if mended is None:
        return None
    return Trouble(mended, "Install torch and torchvision from one index: both built for CPU, or both for CUDA.")


def _two_onnxruntimes() -> Trouble | None:
    found = [name for name in _RUNTIMES if _version(name) is not None]
    if len(found) < 2:
        return None
    return Trouble(
        f"{' and '.join(found)} are installed: they share their files, and the last one installed wins.",
        f"pip uninstall {' '.join(found)}, then install the one you want.",
    )


def _retired_tools() -> Trouble | None:
    if _version("onnxruntime-tools") is None:
        return None
    return Trouble(
        "onnxruntime-tools is installed: it is retired, and not used here.",
        "Use what is in onnxruntime itself, onnxruntime.quantization and onnxruntime.transformers.",
    )


def _cuda_on_one_side() -> Trouble | None:
    try:
        torch: Any = importlib.import_module("torch")
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except Exception as error:  # as above
        logger.debug("no comparison of torch and onnxruntime: %s", error)
        return None
    in_torch = torch.version.cuda is not None and torch.cuda.is_available()
    in_onnxruntime = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if in_torch and not in_onnxruntime:
        return Trouble(
            "torch can use the GPU, onnxruntime cannot: CUDA latency cannot be measured.",
            "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    if in_onnxruntime and not in_torch:
        return Trouble(
            "onnxruntime is built for the GPU, torch cannot use one: fine-tuning runs on the CPU.",
            "Install a CUDA build of torch, or plain onnxruntime; check the driver with nvidia-smi.",
        )
    return None


def _no_vnni() -> Trouble | None:
    if not saturates():
        return None
    return Trouble(
        "This CPU has no VNNI: sums of int8 products saturate at 16 bits, and int8 is hardly faster than float.",
        "Nothing to install. 7-bit weights avoid it (reduce_range); what ships is decided by measuring.",
    )


def _quota_below_cores() -> Trouble | None:
    quota, cores = _quota(_CGROUPS, _OWN_CGROUP), _affinity()
    if quota is None or quota >= cores:
        return None
    return Trouble(
        f"The container may use {quota:g} of the {cores} CPUs it sees: who counts them starts too many threads.",
        "compress keeps to the quota. For other programs set OMP_NUM_THREADS and the threads of onnxruntime.",
    )
