"""`example_report`: a whole report.json made by hand, for the tests of what reads it.

A CNN for Fashion-MNIST that was pruned, made sparse and quantized, measured on the CPU and on a CUDA device that was
not there. The figures are of the size that such runs have; none was measured.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from scipy import stats

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ABSENT = "CUDAExecutionProvider is not in this build of onnxruntime. Install onnxruntime-gpu, see `compress doctor`."
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
LAYERS = (  # name, operator, shape before, shape after
    ("features.0", "Conv", (32, 1, 3, 3), (16, 1, 3, 3)),
    ("features.3", "Conv", (64, 32, 3, 3), (32, 16, 3, 3)),
    ("features.6", "Conv", (64, 64, 3, 3), (24, 32, 3, 3)),
    ("classifier.1", "Gemm", (128, 1024), (64, 384)),
    ("classifier.4", "Gemm", (10, 128), (10, 64)),
)
SAMPLES = 10_000  # of test
# name, stage, parameters, nonzero, MACs, raw bytes, zip bytes, right answers of 10,000, p50 in ms at batch 1
VARIANTS: tuple[tuple[str, str, int, int, int, int, int, int, float], ...] = (
    ("baseline-fp32", "baseline", 189_162, 189_162, 12_694_016, 762_401, 705_310, 8897, 0.2815),
    ("pruned-fp32", "prune", 37_210, 37_210, 3_401_216, 152_330, 141_902, 8879, 0.1126),
    ("pruned-sparse-fp32", "export", 37_210, 5_602, 3_401_216, 152_330, 24_872, 8871, 0.1119),
    ("pruned-sparse-int8", "quantize", 37_210, 5_602, 3_401_216, 43_120, 9_632, 8862, 0.0704),
    ("pruned-sparse-int8-weights", "quantize", 37_210, 5_602, 3_401_216, 42_790, 9_955, 8868, 0.2790),
)
SHIPPED = "pruned-sparse-int8"
# What earned each file on the way to it: the export stage only writes what sparsify made.
STEPS = dict(zip((row[0] for row in VARIANTS), ("baseline", "prune", "sparsify", "quantize"), strict=False))


def example_report(**changes: Any) -> dict[str, Any]:
    """A valid report.json, as a new plain dict; ``changes`` replace what is at its top."""
    variants = [_variant(number) for number in range(len(VARIANTS))]
    shipped = next(variant for variant in variants if variant["name"] == SHIPPED)
    speedup = shipped["latency"][0]["speedup"]
    return {
        "schema": 1,
        "command": "compress pipeline model.pt --data fashion-mnist --max-drop 0.01 --providers cpu,cuda --batch 1,8",
        "seed": 0,
        "objective": "balanced",
        "environment": _environment(),
        "model": {"path": "fashion/model.pt", "sha256": "9b1c" * 16},
        "data": {
            "name": "fashion-mnist",
            "train": 54_000,
            "calibration": 512,
            "validation": 6_000,
            "test": SAMPLES,
            "sha256": "175cc3d4f711cd19e427a4fcabc407ad520b8507b0e0ffecc1cc873e5a85f81c",
            "classes": 10,
            "class_names": list(CLASSES),
        },
        "variants": variants,
        "shipped": SHIPPED,
        "verdict": {
            "max_drop": 0.01,
            "drop": shipped["drop"],
            "passed": True,
            "zip_ratio": VARIANTS[0][5] / 9_927,
            "speedup": speedup["value"],
            "drop_interval": shipped["drop_interval"],
            "speedup_interval": {"low": speedup["low"], "high": speedup["high"]},
            "speedup_significant": True,
            "met": True,
            "measured_in": "accuracy",
        },
        "shipped_zip_bytes": 9_927,
        "journey": [
            {"stage": STEPS[name], "variant": name, "zip_bytes": zipped, "p50_ms": p50, "figure": right / SAMPLES}
            for name, *_, zipped, right, p50 in VARIANTS[:4]
        ],
        "machine": {
            "fp32_gmacs": 62.0,
            "int8_gmacs": 210.0,
            "bandwidth": [
                {"bytes": 32_768, "gb_per_s": 172.0},
                {"bytes": 524_288, "gb_per_s": 88.5},
                {"bytes": 8_388_608, "gb_per_s": 31.2},
                {"bytes": 134_217_728, "gb_per_s": 13.6},
            ],
            "node_us": 1.4,
            "call_us": 3.9,
            "threads": 1,
        },
        "layers": [_layer(number) for number in range(len(LAYERS))],
        "changed": [_changed(number) for number in range(6)],
        "sensitivity": {
            "layers": [name for name, *_ in LAYERS],
            "columns": ["50 %", "80 %", "90 %", "95 %", "int8", "int4"],
            "drops": [
                [0.004, 0.051, 0.182, 0.403, 0.0, 0.031],
                [0.001, 0.018, 0.094, 0.251, 0.0, 0.012],
                [-0.001, 0.009, 0.061, 0.188, -0.001, 0.006],
                [0.0, 0.002, 0.008, 0.022, 0.0, 0.001],
                [0.002, 0.012, 0.047, 0.112, 0.001, None],
            ],
            "measured_in": "accuracy",
            "n": 1024,
        },
        "stages": _stages(),
        "notes": ["Test is the source's own; validation is 10% of train, by seed 0."],
        **changes,
    }


def _variant(number: int) -> dict[str, Any]:
    name, stage, parameters, nonzero, macs, raw, zipped, right, p50 = VARIANTS[number]
    drop = (VARIANTS[0][7] - right) / SAMPLES
    only_variant = 0 if number == 0 else 60 + 10 * number
    only_baseline = only_variant + VARIANTS[0][7] - right
    spread = 1.96 * np.sqrt(only_baseline + only_variant) / SAMPLES
    return {
        "name": name,
        "stage": stage,
        "file": f"stages/{4 if stage == 'quantize' else number:02d}-{stage}/model.onnx",
        "parameters": parameters,
        "nonzero": nonzero,
        "macs": macs,
        "sparsity": 1 - nonzero / parameters,
        "raw_bytes": raw,
        "zip_bytes": zipped,
        "zip_ratio": VARIANTS[0][5] / zipped,
        "sizes": _sizes(number),
        "accuracy": accuracy(right, SAMPLES),
        "top5": accuracy(9978 - 2 * number, SAMPLES),
        "metric": None,
        "fidelity": 1.0 if number == 0 else 0.972 - 0.004 * number,
        "logit_sqnr_db": None if number == 0 else 24.0 - 2.5 * number,
        "drop": drop,
        "drop_interval": None if number == 0 else {"low": float(drop - spread), "high": float(drop + spread)},
        "mcnemar": None
        if number == 0
        else {
            "only_baseline": only_baseline,
            "only_variant": only_variant,
            "p": float(stats.binomtest(only_variant, only_baseline + only_variant).pvalue),
        },
        "classes": [_class(place, drop) for place in range(10)],
        "validation": {
            "accuracy": accuracy(round(right * 0.6) - 7, 6_000),
            "top5": accuracy(5_985, 6_000),
            "metric": None,
            "fidelity": 1.0 if number == 0 else 0.971 - 0.004 * number,
            "sqnr_db": None if number == 0 else 24.1 - 2.5 * number,
            "n": 6_000,
            "drop": (round(VARIANTS[0][7] * 0.6) - round(right * 0.6)) / 6_000,
        },
        "latency": _latency(number),
        "limit": _limit(number, p50),
        "sparsity_gain": None
        if name != "pruned-sparse-fp32"
        else {
            "twin": "pruned-fp32",
            "dense_zip_bytes": VARIANTS[1][6],
            "zip_ratio": VARIANTS[1][6] / zipped,
            "estimated": False,
            "latency_ratio": {"value": 0.994, "low": 0.981, "high": 1.008, "significant": False},
        },
        "not_shipped": None if name == SHIPPED else f"less balanced ({1.9 + number:.2f}, 17.5): p50 {p50 * 1e3:.0f} µs",
    }


def accuracy(right: int, n: int) -> dict[str, Any]:
    """A share with its Wilson interval."""
    interval = stats.binomtest(right, n).proportion_ci(method="wilson")
    return {"value": right / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def _class(place: int, drop: float) -> dict[str, Any]:
    """One class on test; the largest drop first."""
    lost = round(drop + (4.5 - place) * drop / 2, 6)
    baseline = 0.73 + 0.026 * place
    return {
        "label": place,
        "n": SAMPLES // 10,
        "baseline": round(baseline, 3),
        "accuracy": round(baseline - lost, 6),
        "drop": lost,
    }


def _sizes(number: int) -> dict[str, Any]:
    name, _, parameters, *_ = VARIANTS[number]
    raw, zipped = VARIANTS[number][5:7]
    width = 1 if "int8" in name else 4
    metadata, weights = 310, parameters * width
    layers = []
    for layer, kind, before, after in LAYERS:
        count = int(np.prod(before if number == 0 else after))
        stored = round(count * width * (zipped - 2_000) / weights)
        layers.append(
            {
                "name": layer,
                "kind": kind,
                "bytes": count * width,
                "zip_bytes": stored,
                "entropy_bytes": round(stored * 0.93),
            }
        )
    return {
        "raw_bytes": raw,
        "zip_bytes": zipped,
        "gzip_bytes": zipped - 104,
        "zstd_bytes": round(zipped * 0.96),
        "entropy_bytes": round(zipped * 0.94),
        "by_kind": {"weights": weights, "graph": raw - weights - metadata, "metadata": metadata},
        "by_layer": layers,
    }


def _latency(number: int) -> list[dict[str, Any]]:
    """CPU at batch 1 and 8, then CUDA, which is not there."""
    rows = [_timing(number, batch) for batch in (1, 8)]
    return rows + [_absent(batch) for batch in (1, 8)]


def _timing(number: int, batch: int) -> dict[str, Any]:
    name, p50 = VARIANTS[number][0], VARIANTS[number][-1] * (1 if batch == 1 else 6.3)
    quantiles = [round(p50 * (0.93 + 0.07 * q / 50 + (q / 100) ** 24), 6) for q in range(101)]
    value = VARIANTS[0][-1] / VARIANTS[number][-1]
    # As the files for its weights alone, which compute in float: no difference that could be told.
    significant = number not in (0, 4)
    spread = 0.0 if number == 0 else 0.021
    return {
        "provider": CPU,
        "batch": batch,
        "threads": 1,
        "p50_ms": p50,
        "p90_ms": quantiles[90],
        "p95_ms": quantiles[95],
        "p99_ms": quantiles[99],
        "mean_ms": p50 * 1.02,
        "first_call_ms": p50 * 2.4,
        "load_ms": 9.6 - number,
        "peak_bytes": 61_400_000 - 1_100_000 * number,
        "throughput": batch * 1e3 / (p50 * 1.02),
        "samples": 5_000,
        "status": "ok",
        "settled": not (name == "pruned-sparse-fp32" and batch == 8),
        "rounds": 25,
        "launches": 5,
        "energy_mj": None,
        "placement": {"nodes": {CPU: 9}, "copies": 0, "by_operator": {CPU: _operators(name)}},
        "precision": None,
        "p50_interval": {"low": p50 * 0.987, "high": p50 * 1.014},
        "p95_interval": {"low": quantiles[95] * 0.97, "high": quantiles[95] * 1.05},
        "quantiles_ms": quantiles,
        "speedup": {
            "value": value,
            "low": value * (1 - spread),
            "high": value * (1 + spread),
            "significant": significant,
        },
    }


def _operators(name: str) -> dict[str, int]:
    if name == SHIPPED:
        return {"QLinearConv": 3, "QGemm": 2, "MaxPool": 2, "QuantizeLinear": 1, "DequantizeLinear": 1}
    return {"FusedConv": 3, "Gemm": 1, "FusedGemm": 1, "MaxPool": 2, "Flatten": 2}


def _absent(batch: int) -> dict[str, Any]:
    figures = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "first_call_ms", "load_ms", "peak_bytes")
    others = ("throughput", "energy_mj", "placement", "precision", "p50_interval", "p95_interval", "speedup")
    return {
        "provider": CUDA,
        "batch": batch,
        "threads": 1,
        **dict.fromkeys((*figures, *others)),
        "quantiles_ms": [],
        "samples": 0,
        "status": ABSENT,
        "settled": True,
        "rounds": 0,
        "launches": 0,
    }


def _limit(number: int, p50: float) -> dict[str, Any]:
    macs, weights = VARIANTS[number][4], VARIANTS[number][5]
    compute, memory, overhead = macs / 1e6 / (210.0 if number == 3 else 62.0), weights / 88.5e6, 0.0165
    parts = {"compute": compute, "memory": memory, "overhead": overhead}
    roofline = sum(parts.values())
    return {
        **{f"{name}_ms": value for name, value in parts.items()},
        "roofline_ms": roofline,
        "reached": roofline / p50,
        "bound": max(parts, key=lambda name: parts[name]),
        "macs": macs,
        "moved_bytes": weights + 120_000,
        "nodes": 9,
    }


def _layer(number: int) -> dict[str, Any]:
    name, kind, before, after = LAYERS[number]
    generator = np.random.default_rng(number)
    weights = generator.normal(0, 0.1, int(np.prod(before)))
    left = generator.normal(0, 0.14, int(np.prod(after)))
    left = left[np.abs(left) > 0.2]
    edges = np.linspace(-0.5, 0.5, 62)
    return {
        "name": name,
        "kind": kind,
        "before": _side(before, weights.size, 4),
        "after": _side(after, left.size, 1),
        "histogram": {
            "edges": [round(float(edge), 6) for edge in edges],
            "before": np.histogram(weights, edges)[0].tolist(),
            "after": np.histogram(left, edges)[0].tolist(),
            "zeros_before": 0,
            "zeros_after": int(np.prod(after)) - left.size,
        },
    }


def _side(shape: tuple[int, ...], nonzero: int, width: int) -> dict[str, Any]:
    weights = int(np.prod(shape))
    return {
        "shape": list(shape),
        "channels": shape[0],
        "weights": weights,
        "nonzero": nonzero,
        "bytes": weights * width,
    }


def _changed(number: int) -> dict[str, Any]:
    """The first four are broken; the others were wrong before too."""
    label = (6, 4, 2, 6, 0, 3)[number]
    return {
        "index": 37 + 411 * number,
        "label": label,
        "before": label if number < 4 else (label + 6) % 10,
        "after": (label + 4) % 10,
        "before_probability": 0.81 - 0.05 * number,
        "after_probability": 0.66 - 0.03 * number,
        "image": _picture(number),
        "text": None,
    }


def _picture(seed: int) -> str:
    """A small grey picture as a data URI."""
    generator = np.random.default_rng(seed)
    pixels = (generator.random((7, 7)).repeat(12, axis=0).repeat(12, axis=1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _environment() -> dict[str, Any]:
    return {
        "cpu": "AMD EPYC",
        "isa": ["sse4.1", "avx", "avx2", "fma", "f16c"],
        "machine": "x86_64",
        "cores": 2,
        "threads": 1,
        "os": "Linux-6.1-x86_64-with-glibc2.36",
        "governor": "performance",
        "turbo": True,
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "torchvision": "0.28.0",
        "onnx": "1.23.2",
        "onnxruntime": "1.31.1",
        "compress": "0.1.0",
    }


def _stages() -> list[dict[str, Any]]:
    """Seconds of each stage, and the figures that reports show."""
    layers = [_summary(number) for number in range(len(LAYERS))]
    files = {
        "int8": {
            "bytes": 43_120,
            "sqnr_db": 21.4,
            "int8_mac_share": 1.0,
            "saturating_layers": 1,
            "portability": ["on CPUs with VNNI the sums do not saturate; answers may differ in the last digits."],
        },
        "int8-weights": {
            "bytes": 42_790,
            "sqnr_db": 29.8,
            "int8_mac_share": 0.0,
            "saturating_layers": 0,
            "portability": ["computes in float everywhere."],
        },
    }
    calibration = {
        "method": "percentile",
        "samples": 512,
        "sqnr_db": {"minmax": 19.8, "percentile": 21.4},
        "equalized_pairs": 0,
        "sha256": "0f" * 32,
    }
    figures: dict[str, dict[str, Any]] = {
        "baseline": {"parity": 3.8e-06, "bytes": 762_401, "opset": 18},
        "prune": {"macs_before": 12_694_016, "macs": 3_401_216},
        "sparsify": {"sparsity": 0.849, "layers": layers},
        "export": {"parity": 2.9e-06, "bytes": 152_330, "opset": 18},
        "quantize": {"files": files, "calibration": calibration},
        "benchmark": {"validation_samples": 6_000, "test_samples": SAMPLES, "threads": [1], "load_average": 0.31},
    }
    notes = {"benchmark": [f"{SHIPPED} on {CUDA}: {ABSENT}"]}
    seconds = {"baseline": 2.8, "prune": 412.0, "sparsify": 388.5, "export": 2.2, "quantize": 31.4, "benchmark": 64.9}
    return [
        {
            "stage": name,
            "seconds": taken,
            "skipped": None,
            "notes": notes.get(name, []),
            "figures": figures[name],
            "config": {"seconds": 3.0} if name == "benchmark" else {},
        }
        for name, taken in seconds.items()
    ]


def _summary(number: int) -> dict[str, Any]:
    """A layer as `compress.sparsity.weights_summary.LayerWeights` stores it."""
    layer = _layer(number)
    histogram = layer["histogram"]
    return {
        "name": layer["name"],
        "weights": layer["after"]["weights"],
        "nonzero": layer["after"]["nonzero"],
        "edges": histogram["edges"],
        "counts_before": histogram["before"],
        "counts_after": histogram["after"],
    }
