"""The `compress` command: one file a subcommand. The only place that prints or sets an exit status.

Exit status: 0 done; 1 an error, told in a line or two; 2 usage; 3 finished and reported, but no variant met the gate;
130 interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import click

from compress import __version__
from compress.cli.benchmark import benchmark
from compress.cli.check import check
from compress.cli.compare import compare
from compress.cli.completion import completion
from compress.cli.console import complain, write_what_the_output_knows
from compress.cli.curve import curve
from compress.cli.demo import demo
from compress.cli.doctor import doctor
from compress.cli.export import export
from compress.cli.group import Group
from compress.cli.inspect import inspect
from compress.cli.pipeline import pipeline
from compress.cli.prune import prune
from compress.cli.quantize import quantize
from compress.cli.reduce import reduce
from compress.cli.report import report
from compress.cli.sparsify import sparsify
from compress.cli.train import train
from compress.errors import CompressError

SECTIONS = {
    "The whole path": (pipeline, demo),
    "Its stages alone": (prune, sparsify, export, quantize, benchmark),
    "A finished run": (report, check, compare),
    "Looking into a model": (inspect, curve, train, reduce),
    "This machine and this shell": (doctor, completion),
}
DEBUG = "--debug"


class _StandardError(logging.StreamHandler[TextIO]):
    """Warnings go to what is standard error at the time: while bars are shown, that is above them."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


@click.group(
    cls=Group, sections=SECTIONS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="compress")
def cli() -> None:
    """From a trained PyTorch model to the smallest and fastest ONNX file that keeps its accuracy, with the proof.

    \b
    Examples:
      compress demo --out demo
      compress pipeline model.pt --data fashion-mnist --max-drop 0.01
      compress pipeline weights.pt --factory torchvision.models:resnet18 --data images:photos --size 224
      compress doctor

    Every command takes --debug, which shows the traceback of an error.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in given
    write_what_the_output_knows()
    # Warnings of torch and of the exporters are about our calls, not about the user's model.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_StandardError()])
    if debug:
        logging.getLogger("compress").setLevel(logging.DEBUG)
    sys.exit(_status([a for a in given if a != DEBUG] or ["--help"], debug))


def _status(arguments: list[str], debug: bool) -> int:
    try:
        result = cli.main(arguments, prog_name="compress", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return 1
    except (KeyboardInterrupt, click.Abort):
        kept = " What was finished is kept: the same command with --resume goes on from there."
        complain(f"Interrupted.{kept if _resumable(arguments) else ''}")
        return 130
    except BrokenPipeError:
        # The reader of our output left (| head): nothing more to say, and nothing to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(f"Error: {told(error)}")
        return 1
    return result if isinstance(result, int) else 0


def _resumable(arguments: list[str]) -> bool:
    command = cli.commands.get(arguments[0])
    return command is not None and any(option.name == "resume" for option in command.params)


def told(error: Exception) -> str:
    """An error in a line or two."""
    if isinstance(error, CompressError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"no space left on the device{f' for {error.filename}' if error.filename else ''}. Free some and --resume."
        )
    if isinstance(error, MemoryError):
        return "out of memory. Use fewer samples (--limit) or smaller batches (--set sparsify.finetune.batch_size=32)."
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    defect = "This is a defect of compress: please report it with the output of --debug."
    return f"unexpected {type(error).__name__}: {first}\n{defect}"
