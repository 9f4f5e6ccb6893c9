"""The model of `compress demo`: a small CNN for handwritten digits, trained in seconds."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from compress.data import load_data
from compress.files import write_atomically
from compress.models.reference import digits_cnn
from compress.training import FineTuneConfig, finetune, plan_steps
from compress.values import Progress, silent

EPOCHS = 30


def train_digits(path: Path, seed: int = 0, progress: Progress = silent) -> Path:
    """Train on the training split of scikit-learn's digits (8x8 pixels) and save the whole module to ``path``."""
    data = load_data("digits")
    torch.manual_seed(seed)
    module = digits_cnn()
    config = FineTuneConfig(batch_size=64, learning_rate=0.003)
    steps = plan_steps(data.train, config, EPOCHS)
    finetune(module, None, data.train, config, steps=steps, seed=seed, progress=progress, label="training the demo")
    content = io.BytesIO()
    torch.save(module, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
    return path
