"""A `compress` command whose every second is told apart: what trained, and what else there was. See own_cost.

    python -m benchmarks.watched_run FOLDER [--rounds] -- pipeline model.pt --data fashion-mnist …
    python -m benchmarks.watched_run FOLDER --replay STEPS

The first runs the command in this process, and writes FOLDER/watched.json; with --rounds also each model that was
fine-tuned as it was before (round-N.pt), and what it was trained on (train.pt). The second takes STEPS bare training
steps of each of those models, and writes FOLDER/replayed.json. No time is counted while files are written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.training.finetune import FineTuneConfig, distilling_mode
from compress.training.layout import Layout, fastest_layout
from compress.workspace import to_json

TRAINING = "training"
# (module, attribute there, what it is): a call is counted as that, but for the calls of others within it.
WATCHED = (
    ("compress.training.recovery", "finetune", TRAINING),
    ("compress.training.recovery", "teacher_of", "answers of the original"),
    ("compress.training.recovery", "outputs_of", "scoring after fine-tuning"),
    ("compress.pipeline", "open_inputs", "model and data"),
    ("compress.pipeline", "prune_to_budget", "the rest of prune"),
    ("compress.pruning.rounds", "analyse", "groups"),
    ("compress.pruning.rounds", "evidence_for", "importance"),
    ("compress.pruning.rounds", "layer_latency", "latency of layers"),
    ("compress.pruning.rounds", "cut_what_can", "cutting"),
    ("compress.pruning.rounds", "reestimate", "statistics"),
    ("compress.pipeline", "measured_speedup", "latency of candidates"),
    ("compress.pipeline", "sparsify", "the rest of sparsify"),
    ("compress.sparsity.masking", "make_masks", "masks"),
    ("compress.sparsity.search", "predict_zip_bytes", "size model"),
    ("compress.sparsity.stage", "predict_all", "size model"),
    ("compress.pipeline", "export", "export"),
    ("compress.pipeline", "verify", "verify"),
    ("compress.pipeline", "save", "files"),
    ("compress.pipeline", "restore", "files"),
    ("compress.pipeline", "quantize", "candidates"),
    ("compress.quantization.static", "calibrate", "calibration"),
    ("compress.quantization.recovery", "layer_sensitivity", "sensitivity of quantization"),
    ("compress.quantization.recovery", "learn_rounding", "rounding"),
    ("compress.quantization.stage", "add_small_files", "shared weights"),
    ("compress.pipeline", "benchmark", "the rest of benchmark"),
    ("compress.measurement.answers", "score_all", "scoring"),
    ("compress.measurement.latency", "measure", "latency"),
    ("compress.measurement.stage", "_weighed", "bytes"),
    ("compress.pipeline", "sensitivity_map", "sensitivity"),
    ("compress.pipeline", "ship", "report"),
)
REST = "start and the rest"
BLOCKS = 4  # of replayed steps, in which the two ways of training take turns


class Watch:
    """Seconds that passed, and the processor's, of each kind of work. Work within other work is taken out of it."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._open = [REST]
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def turn(self) -> None:
        """Book what has passed since the last turn."""
        now = self._now()
        for place, (before, after) in enumerate(zip(self._since, now, strict=True)):
            self.spent[self._open[-1]][place] += after - before
        self._since = now

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        self.turn()
        self._open.append(what)
        try:
            yield
        finally:
            self.turn()
            self._open.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.turn()
        yield
        self._since = self._now()

    def wrap(self, work: Callable[..., Any], what: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self.doing(what):
                return work(*arguments, **options)

        return watched

    def told(self) -> dict[str, dict[str, float]]:
        self.turn()
        return {what: {"s": s, "cpu_s": cpu} for what, (s, cpu) in self.spent.items()}


def watch_all(watch: Watch) -> None:
    """Put every function of ``WATCHED`` under the watch, for this process."""
    for module, name, what in WATCHED:
        place = importlib.import_module(module)
        setattr(place, name, watch.wrap(getattr(place, name), what))


def keep_rounds(watch: Watch, folder: Path) -> list[dict[str, Any]]:
    """Have every module that is fine-tuned written to ``folder`` as it is before; what is known of them is returned."""
    place = importlib.import_module("compress.training.recovery")
    train, rounds = place.finetune, []

    def kept(module: nn.Module, teacher: Any, split: Any, config: FineTuneConfig, **options: Any) -> float:
        with watch.paused():
            file = folder / f"round-{len(rounds)}.pt"
            torch.save(module, file)
            if not rounds:
                inputs, labels = split.fetch(split.indices)
                theirs = teacher.outputs(torch.arange(len(split)), inputs)
                torch.save({"inputs": inputs, "labels": labels, "teacher": theirs, "config": vars(config)}, _data(file))
            rounds.append({"label": options["label"], "steps": options["steps"], "file": file.name})
        started, cpu = time.perf_counter(), time.process_time()
        loss: float = train(module, teacher, split, config, **options)
        rounds[-1] |= {"s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
        return loss

    place.finetune = kept
    return rounds


def _data(file: Path) -> Path:
    return file.parent / "train.pt"


def run(folder: Path, arguments: Sequence[str], with_rounds: bool) -> int:
    """Run a command of `compress` under the watch; its exit status."""
    from compress.cli import main

    watch = Watch()
    watch_all(watch)
    rounds = keep_rounds(watch, folder) if with_rounds else []
    status = 0
    try:
        main(arguments)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    told = {"status": status, "work": watch.told(), "rounds": rounds}  # no arguments: they name paths
    (folder / "watched.json").write_bytes(to_json(told))
    return status


class Bare:
    """Training steps as a plain PyTorch loop has them: the teacher's answers are there, and nothing else is done."""

    def __init__(self, module: nn.Module, data: dict[str, Any], layout: Layout, fused: bool) -> None:
        self.module, self.data, self.layout = module, data, layout
        self.config = FineTuneConfig(**data["config"])
        distilling_mode(module)
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, weight_decay=0, fused=fused)
        self.generator = torch.Generator().manual_seed(0)

    def steps(self, count: int) -> dict[str, float]:
        """Milliseconds of one of ``count`` steps, and the processor's."""
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            self._step()
        passed = time.perf_counter() - started, time.process_time() - cpu
        return {"ms": 1000 * passed[0] / count, "cpu_ms": 1000 * passed[1] / count}

    def _step(self) -> None:
        data, config = self.data, self.config
        chosen = torch.randperm(len(data["teacher"]), generator=self.generator)[: config.batch_size]
        outputs: Tensor = self.layout.run(self.module, tuple(x[chosen] for x in data["inputs"]))
        t, theirs = config.temperature, data["teacher"][chosen]
        ours, targets = F.log_softmax(outputs / t, dim=1), F.log_softmax(theirs / t, dim=1)
        loss = F.kl_div(ours, targets, reduction="batchmean", log_target=True) * t * t
        if data["labels"] is not None:
            hard = F.cross_entropy(outputs, data["labels"][chosen])
            loss = config.distillation * loss + (1 - config.distillation) * hard
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def replay(folder: Path, steps: int) -> list[dict[str, Any]]:
    """A step of every round's model, as this package takes it (layout, fused optimizer) and as torch does by itself."""
    data = torch.load(folder / "train.pt", weights_only=True)
    split = _split(data)
    found = []
    for file in sorted(folder.glob("round-*.pt"), key=lambda f: int(f.stem.split("-")[1])):
        modules = [torch.load(file, weights_only=False) for _ in range(2)]  # of our own making, a moment ago
        with fastest_layout(modules[0].eval(), split, "cpu", data["config"]["batch_size"]) as layout:
            arms = {"bare": Bare(modules[0], data, layout, True), "plain": Bare(modules[1], data, Layout(), False)}
            for arm in arms.values():
                arm.steps(1)  # first calls load code and allocate
            blocks = [{n: arm.steps(max(1, steps // BLOCKS)) for n, arm in arms.items()} for _ in range(BLOCKS)]
        found.append({"file": file.name, "channels_last": layout.channels_last, "blocks": blocks})
    (folder / "replayed.json").write_text(json.dumps(found))
    return found


def _split(data: dict[str, Any]) -> Any:
    from compress.data.splits import Split

    count = len(data["teacher"])
    return Split("train", lambda i: (tuple(x[i] for x in data["inputs"]), None), torch.arange(count).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", action="store_true")
    parser.add_argument("--replay", type=int, metavar="STEPS")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    torch.set_num_threads(1)
    if options.replay:
        replay(options.folder, options.replay)
        return
    sys.exit(run(options.folder, sys.argv[end + 1 :], options.rounds))


if __name__ == "__main__":
    main()
