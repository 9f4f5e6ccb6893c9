"""Olive: graph optimization, quantization and session tuning, searched together. Run in Olive's environment.

    python -m benchmarks.peers.finish_olive INPUTS SOURCE OUT [--dynamic] [--transformer]

The search (TPE, one thread) is over types, scales, calibrations and formats of `OnnxStaticQuantization`, and over the
session's graph optimization; latency is its first objective, the accuracy has the goal, and what it hands out is the
Pareto frontier. --dynamic: `OnnxDynamicQuantization` too. --transformer: `OrtTransformersOptimization` before it.
"""

from __future__ import annotations

import os
from functools import partial
from shutil import copyfile
from typing import Any

import olive

from benchmarks.peers.finishing import Search, accuracy, arguments, finish
from benchmarks.peers.olive_data import data

POINTS, SECONDS = 24, 900  # of the search, whichever ends first
BOTH = [True, False]
SHARED = {"quant_preprocess": True, "weight_symmetric": True, "precision": ["int8", "uint8"]}  # pruned weights stay 0
SHARED |= {"per_channel": BOTH, "reduce_range": BOTH}
DYNAMIC = {"type": "OnnxDynamicQuantization", **SHARED}
STATIC = {"type": "OnnxStaticQuantization", "data_config": "calibration", **SHARED}
STATIC |= {"activation_type": "uint8"}  # U8S8 and U8U8: what onnxruntime's documentation advises for x86
STATIC |= {"calibrate_method": ["MinMax", "Entropy", "Percentile"], "quant_format": ["QDQ", "QOperator"]}
SESSION = {"type": "OrtSessionParamsTuning", "data_config": "one", "execution_mode_list": 0, "opt_level_list": [2, 99]}
SESSION |= {"intra_thread_num_list": 1, "inter_thread_num_list": 1}
SEARCHED = [name for name, value in STATIC.items() if isinstance(value, list)]


def metrics(search: Search) -> list[dict[str, Any]]:
    task = search.task
    left = accuracy(search.source, task.validation) - (task.baseline - task.max_drop)
    right = {"name": "accuracy_score", "priority": 2, "higher_is_better": True}
    right |= {"metric_config": {"task": "multiclass", "num_classes": int(task.validation.labels.max()) + 1}}
    right |= {"goal": {"type": "max-degradation", "value": left}}
    p50 = {"name": "p50", "priority": 1, "metric_config": {"warmup_num": 50, "repeat_test_num": 500}}
    return [
        {"name": "latency", "type": "latency", "data_config": "one", "sub_types": [p50]},
        {"name": "accuracy", "type": "accuracy", "data_config": "validation", "sub_types": [right]},
        {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 3}]},
    ]


def workflow(search: Search, quantization: dict[str, Any], transformer: bool) -> dict[str, Any]:
    inputs, batch = search.task.inputs, 1 if quantization is DYNAMIC else 256
    fusion = {"fusion": {"type": "OrtTransformersOptimization", "model_type": "vit"}} if transformer else {}
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(search.source)},
        "data_configs": [
            data("calibration", inputs / "calibration.npz", 1),
            data("validation", inputs / "validation.npz", batch),
            data("one", inputs / "validation.npz", 1),
        ],
        "evaluators": {"all": {"type": "OnnxEvaluator", "metrics": metrics(search)}},
        "evaluator": "all",
        "passes": {
            "optimization": {"type": "OnnxPeepholeOptimizer"},
            **fusion,
            "quantization": quantization,
            "session": SESSION,
        },
        "search_strategy": {"execution_order": "joint", "sampler": "tpe", "max_iter": POINTS, "max_time": SECONDS},
        "cache_dir": str(search.folder / "cache"),
        "output_dir": str(search.folder / "output"),
    }


def main() -> None:
    task, flags = arguments(__doc__, "dynamic", "transformer")
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

    def quantize(search: Search) -> None:
        for quantization in (STATIC, DYNAMIC) if flags.dynamic else (STATIC,):
            result = olive.run(workflow(search, quantization, flags.transformer))
            for model in result.get_output_models():
                runs = [run for run in result.trace_back_run_history(model.model_id).values() if run]
                chosen = [f"{name} {run[name]}" for run in runs for name in SEARCHED if run.get(name) is not None]
                told = f"Olive {quantization['type']}: {', '.join(chosen)}"
                options = model.get_inference_config()["session_options"]
                told += f"; session's graph_optimization_level {options['graph_optimization_level']}"
                search.add(told, partial(copyfile, model.model_path))

    finish(task, quantize, "olive-ai", "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
