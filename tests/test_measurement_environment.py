from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from compress.measurement import environment as env
from compress.measurement import sessions
from compress.measurement.environment import Trouble
from compress.measurement.sessions import PROVIDERS
from tests.conftest import Call

AVX2 = frozenset({"avx", "avx2", "sse4_1"})


def cgroups(root: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A cgroup file system under ``root``, and the process's own entry."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "own").write_text(own)
    return root, root / "own"


def pretend_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Only these distributions are installed; underscores stand for hyphens."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(importlib.metadata, "version", version)


def told(troubles: list[Trouble]) -> str:
    return "\n".join(f"{trouble.what} {trouble.mend}" for trouble in troubles)


def test_the_environment_names_machine_and_versions() -> None:
    found = env.environment(threads=3)
    assert found["threads"] == 3
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["torch"].startswith(importlib.metadata.version("torch"))
    assert {"isa", "machine", "os", "python", "torchvision", "onnx", "onnxruntime", "compress"} <= set(found)


def test_instruction_sets_have_the_names_that_people_know() -> None:
    assert env._isa(AVX2 | {"avx512f", "avx512_vnni", "avx_vnni"}) == ["sse4.1", "avx", "avx2", "avx512", "vnni"]


def test_the_quota_of_a_version_2_cgroup_is_read(tmp_path: Path) -> None:
    assert env._quota(*cgroups(tmp_path, "0::/box\n", {"box/cpu.max": "150000 100000"})) == 1.5


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "400000 100000"}
    assert env._quota(*cgroups(tmp_path, "0::/a/b\n", files)) == 2.0


def test_the_quota_of_a_version_1_cgroup_is_read(tmp_path: Path) -> None:
    files = {"cpu/box/cpu.cfs_quota_us": "300000\n", "cpu/box/cpu.cfs_period_us": "100000\n"}
    assert env._quota(*cgroups(tmp_path, "4:memory:/box\n2:cpu,cpuacct:/box\n", files)) == 3.0


def test_a_container_that_does_not_see_its_own_group_still_finds_its_quota(tmp_path: Path) -> None:
    assert env._quota(*cgroups(tmp_path, "0::/docker/0123\n", {"cpu.max": "200000 100000"})) == 2.0


def test_no_limit_is_no_quota(tmp_path: Path) -> None:
    assert env._quota(*cgroups(tmp_path, "0::/\n", {"cpu.max": "max 100000"})) is None
    assert env._quota(tmp_path, tmp_path / "absent") is None


def test_threads_are_the_smaller_of_affinity_and_quota_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "_affinity", lambda: 8)
    for quota, expected in ((None, 8), (2.5, 2), (0.5, 1), (64.0, 8)):
        monkeypatch.setattr(env, "_quota", lambda root, own, quota=quota: quota)
        assert env.available_threads() == expected


def test_the_cpu_provider_runs_and_only_real_ones_are_listed() -> None:
    found = env.providers()
    assert found[0] == "CPUExecutionProvider"
    assert set(found) <= {row.name for row in PROVIDERS.values()}


def test_every_provider_tells_that_it_runs_or_why_not_and_what_to_do() -> None:
    states = {state.key: state for state in env.provider_states()}
    assert list(states) == list(PROVIDERS)
    assert (states["cpu"].runs, states["cpu"].told, states["cpu"].mend) == (True, "runs", "")
    for key, state in states.items():
        if PROVIDERS[key].name not in onnxruntime.get_available_providers():
            assert not state.runs
            assert state.told == "not in this build of onnxruntime"
            assert PROVIDERS[key].install in state.mend


def test_a_provider_that_is_there_and_fails_tells_the_reason_and_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(sessions, "trial", lambda key: None if key == "cpu" else "libcudnn.so.9: cannot open")
    state = next(state for state in env.provider_states() if state.key == "cuda")
    assert (state.runs, state.told) == (False, "present, but fails: libcudnn.so.9: cannot open")
    assert "NVIDIA driver" in state.mend
    assert env.providers() == ["CPUExecutionProvider"]


def test_doctor_has_a_line_for_every_provider(compress: Call) -> None:
    outcome = compress("doctor")
    assert outcome.status == 0
    lines = outcome.out.split("providers\n")[1].split("\n\n")[0].splitlines()
    assert lines[0].split() == ["cpu", "runs"]
    assert {line.split()[0] for line in lines if line[2] != " "} == set(PROVIDERS)


def test_gpus_are_named_with_their_drivers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.124, 700.00 W'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    env._gpus.cache_clear()
    try:
        assert env.environment(1)["gpu"] == ["NVIDIA H200, driver 570.124, 700.00 W"]
    finally:
        env._gpus.cache_clear()


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"torch": "2.5.1+cpu"}, "CVE-2025-32434"),
        ({"torch": "2.13.0", "onnxruntime": "1.31.1", "onnxruntime_gpu": "1.31.1"}, "pip uninstall onnxruntime"),
        ({"torch": "2.13.0", "onnxruntime": "1.31.1", "onnxruntime_openvino": "1.24.1"}, "share their files"),
        ({"torch": "2.13.0", "onnxruntime_tools": "1.7.0"}, "onnxruntime.transformers"),
        ({}, "torch is not installed"),
    ],
)
def test_a_wrong_installation_is_told_with_its_mend(
    versions: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_versions(monkeypatch, **versions)
    assert expected in told(env.troubles())


def test_a_recent_installation_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, torch="2.10.0+cpu", onnxruntime="1.31.1")
    monkeypatch.setattr(env, "_cpu", lambda: ("a CPU", AVX2 | {"avx512_vnni"}))
    monkeypatch.setattr(env, "_quota", lambda root, own: None)
    monkeypatch.setattr(env, "_missing_operators", lambda: None)
    monkeypatch.setattr(env, "_cuda_on_one_side", lambda: None)
    assert env.troubles() == []


@pytest.mark.parametrize(("flags", "trouble"), [(AVX2, True), (AVX2 | {"avx_vnni"}, False), (frozenset(), False)])
def test_saturating_int8_is_told_of_an_x86_cpu_without_vnni(
    flags: frozenset[str], trouble: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "_cpu", lambda: ("a CPU", flags))
    assert ("no VNNI" in told(env.troubles())) == trouble


def test_a_quota_below_the_cores_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "_affinity", lambda: 16)
    monkeypatch.setattr(env, "_quota", lambda root, own: 2.0)
    assert "2 of the 16 CPUs" in told(env.troubles())


def test_the_environment_is_known_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise OSError('libtorch.so: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from compress.measurement.environment import environment, providers, troubles\n"
        "environment(1); providers()\n"
        "assert any('torch cannot be imported' in t.what for t in troubles())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"sse4_1", "avx2"}, True),
        ({"sse4_1", "avx2", "avx512f", "avx512bw"}, True),
        ({"sse4_1", "avx2", "avx512f", "avx512_vnni"}, False),
        ({"sse4_1", "avx2", "avx_vnni"}, False),
        ({"asimd"}, False),
    ],
)
def test_x86_without_vnni_saturates(monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: bool) -> None:
    monkeypatch.setattr(env, "_cpu", lambda: ("a CPU", frozenset(flags)))
    assert env.saturates() is expected


def test_the_clock_is_told_where_the_system_tells_it(tmp_path: Path) -> None:
    assert env._clock(tmp_path) == {"governor": None, "turbo": None}
    (tmp_path / "cpu0/cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0/cpufreq/scaling_governor").write_text("powersave\n")
    (tmp_path / "cpufreq").mkdir()
    (tmp_path / "cpufreq/boost").write_text("1\n")
    assert env._clock(tmp_path) == {"governor": "powersave", "turbo": True}
    (tmp_path / "intel_pstate").mkdir()
    (tmp_path / "intel_pstate/no_turbo").write_text("1\n")
    assert env._clock(tmp_path)["turbo"] is False


def test_what_the_system_does_not_tell_of_its_clock_is_left_out() -> None:
    assert None not in [value for name, value in env.environment(1).items() if name in ("governor", "turbo")]
