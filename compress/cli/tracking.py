"""--mlflow and --tensorboard, of the commands that end with a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress.cli.console import complain

if TYPE_CHECKING:
    from compress.experiments import Trackers

Function = TypeVar("Function", bound=Callable[..., Any])
EXPERIMENT = "compress"  # that of `compress.experiments`, whose import takes a second


def tracking_options() -> Callable[[Function], Function]:
    """Where the run is logged besides its directory: ``mlflow`` and ``tensorboard``, for `trackers`."""

    def decorate(function: Function) -> Function:
        mlflow = click.option(
            "--mlflow",
            metavar="[EXPERIMENT]",
            is_flag=False,
            flag_value=EXPERIMENT,
            help="Log the run to MLflow, at MLFLOW_TRACKING_URI. [experiment: compress]",
        )
        tensorboard = click.option(
            "--tensorboard",
            metavar="DIR",
            type=click.Path(path_type=Path, file_okay=False),
            help="Log the run for TensorBoard, in a folder of its own in DIR.",
        )
        return mlflow(tensorboard(function))

    return decorate


def trackers(mlflow: str | None, tensorboard: Path | None) -> Trackers | None:
    """What `track` logs to, checked before the work starts; None where nothing was asked for."""
    if mlflow is None and tensorboard is None:
        return None
    from compress.experiments import open_trackers

    return open_trackers(mlflow, tensorboard)


def track(where: Trackers | None, root: Path) -> None:
    """Log the finished run in ``root``, and say so beside the result, on standard error."""
    if where is None:
        return
    from compress.experiments import log_run

    for line in log_run(where, root):
        complain(line)
