"""Fine-tuning: the only training loop of the package."""

from compress.training.finetune import FineTuneConfig, finetune, plan_steps
from compress.training.teacher import Teacher

__all__ = ["FineTuneConfig", "Teacher", "finetune", "plan_steps"]
