"""Fine-tuning: the only training loop of the package."""

from compress.training.finetune import FineTuneConfig, finetune, plan_steps
from compress.training.recovery import Outcome, Recovery, last_step, way_back, worth_more
from compress.training.statistics import reestimate
from compress.training.teacher import Teacher, teacher_of

__all__ = [
    "FineTuneConfig",
    "Outcome",
    "Recovery",
    "Teacher",
    "finetune",
    "last_step",
    "plan_steps",
    "reestimate",
    "teacher_of",
    "way_back",
    "worth_more",
]
