"""compress.quantization.isa and the instruction sets it stands on: where a file is exact, and where it is fast."""

from __future__ import annotations

import subprocess

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizationError
from compress.measurement import environment as env
from compress.quantization.isa import TARGETS, exact_on, host, integer_types, portability, target

SAFE, RISKY = 64, 127
PAIRS = {"u8s8": (np.uint8, np.int8), "s8s8": (np.int8, np.int8), "u8u8": (np.uint8, np.uint8)}


def _file(types: str = "u8s8", layers: tuple[int, ...] = (RISKY,)) -> onnx.ModelProto:
    """A chain of Gemm layers named fc0, fc1, …, all weights of each with one value."""
    activation, weight = PAIRS[types]
    nodes, constants = [], {"scale": np.float32(1), "zero": activation(0)}
    value = "x"
    for number, size in enumerate(layers):
        constants[f"w{number}"] = np.full((4, 4), size, weight)
        nodes += [
            helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"q{number}"]),
            helper.make_node("DequantizeLinear", [f"q{number}", "scale", "zero"], [f"d{number}"]),
            helper.make_node("DequantizeLinear", [f"w{number}", "scale"], [f"wd{number}"]),
            helper.make_node("Gemm", [f"d{number}", f"wd{number}"], [f"y{number}"], transB=1, name=f"fc{number}"),
        ]
        value = f"y{number}"
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (("sse4.1", "avx", "avx2"), "avx2"),
        (("sse4.1", "avx", "avx2", "avx512"), "avx512"),
        (("sse4.1", "avx", "avx2", "vnni"), "avx-vnni"),
        (("sse4.1", "avx", "avx2", "avx512", "vnni"), "avx512-vnni"),
        (("sse4.1", "avx", "avx2", "avx512", "vnni", "amx", "amx-bf16"), "amx"),
        (("sse4.1", "avx"), "any-x86"),
        (("neon",), "arm"),
        (("neon", "dotprod"), "arm-dotprod"),
        (("neon", "dotprod", "i8mm", "sve"), "arm-i8mm"),
        ((), "any"),
    ],
)
def test_the_host_is_the_kind_that_its_instruction_sets_tell(sets: tuple[str, ...], name: str) -> None:
    assert host(sets).name == name


def test_every_target_can_be_asked_for_by_its_name() -> None:
    for name in TARGETS:
        assert target(name).name == name or name == "host"
    assert target().name in TARGETS


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match=r"'sse2'.*avx512-vnni"):
        target("sse2")


def test_the_host_saturates_exactly_where_the_environment_says_so() -> None:
    assert target("host").saturates is (env.saturates() or target("host").name == "any")


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "host"])
def test_a_file_is_exact_where_products_do_not_saturate_or_weights_are_small(name: str) -> None:
    assert exact_on(_file(layers=(SAFE,)), target(name))
    assert exact_on(_file("u8u8", (RISKY,)), target(name))
    without_vnni = name in ("avx2", "avx512", "any-x86", "any")
    assert exact_on(_file(layers=(SAFE, RISKY)), target(name)) is not without_vnni
    assert exact_on(_file("s8s8"), target(name)) is not without_vnni


def test_the_types_of_the_integer_layers_are_found() -> None:
    for types in PAIRS:
        assert integer_types(_file(types)) == (types,)
    plain = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "model", [], [])
    assert integer_types(helper.make_model(plain)) == ()


def test_portability_names_the_layers_that_saturate_elsewhere() -> None:
    first = portability(_file(layers=(RISKY, SAFE, RISKY)), target("avx512-vnni"))[0]
    assert first.startswith("avx2, avx512: accuracy can fall")
    assert "fc0, fc2" in first
    assert "fc1" not in first
    many = portability(_file(layers=(RISKY,) * 5), target("avx512-vnni"))[0]
    assert "fc0, fc1, fc2 and 2 more" in many


def test_portability_does_not_tell_of_the_processor_at_hand() -> None:
    assert portability(_file(), target("avx2"))[0].startswith("avx512: accuracy")
    exact = portability(_file(layers=(SAFE,)), target("avx2"))
    assert not any("accuracy" in line for line in exact)


def test_portability_tells_where_the_types_have_no_fast_kernel() -> None:
    u8u8 = "\n".join(portability(_file("u8u8"), target("avx2")))
    assert "avx512, avx-vnni, avx512-vnni, amx, arm, arm-dotprod, arm-i8mm: U8U8 is not the fastest" in u8u8
    assert any(line.startswith("arm-dotprod, arm-i8mm: U8S8") for line in portability(_file(), target("amx")))
    assert any(line.startswith("avx2, avx512") for line in portability(_file("s8s8", (SAFE,)), target("arm-i8mm")))


def test_a_float_file_is_exact_everywhere_and_has_nothing_to_tell() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "model", [], [])
    model = helper.make_model(graph)
    assert portability(model, target("any")) == ()
    assert all(exact_on(model, target(name)) for name in TARGETS)


def test_amx_and_sve_have_their_names() -> None:
    flags = frozenset({"avx512f", "amx_int8", "amx_bf16", "asimd", "sve"})
    assert env._isa(flags) == ["avx512", "amx", "amx-bf16", "neon", "sve"]


def test_apple_silicon_tells_its_products_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"hw.optional.arm.FEAT_DotProd": "1\n", "hw.optional.arm.FEAT_I8MM": "0\n"}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=told[command[-1]])

    monkeypatch.setattr(subprocess, "run", run)
    assert env._arm_flags("Darwin", "arm64") == {"asimd", "asimddp"}
    assert env._arm_flags("Linux", "aarch64") == {"asimd"}
    assert env._arm_flags("Darwin", "x86_64") == set()


def test_a_system_without_sysctl_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(subprocess, "run", run)
    assert env._arm_flags("Darwin", "arm64") == {"asimd"}
