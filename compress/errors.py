"""The errors that compress raises on purpose.

    CompressError                 exit status 1: one or two lines, no traceback
    ├── RecipeError               an option or a compress.toml that cannot be used (all problems told at once)
    ├── ModelError                the model file or the module in it
    │   └── UntrustedPickleError  a pickle that wants code it may not have
    ├── DataError                 the data source, or data that does not fit the model
    ├── ExportError               the model cannot be written as ONNX, or the ONNX file does not agree with it
    ├── QuantizationError         the ONNX graph cannot be quantized
    ├── MeasurementError          a session or a measurement that cannot be trusted
    ├── PruningError              channels that cannot be cut, or a target that cannot be reached by cutting
    ├── SparsityError             a sparsity that cannot be reached or did not hold
    ├── ReportError               a report.json that cannot be read, or is not what its schema says
    └── WorkspaceError            the run directory: in use, unwritable, full

Anything else that escapes is a defect of compress and says so. ``cli/`` is the one place where an error becomes an
exit status. A message names what was asked, what was found, what is allowed, and the next step.
"""


class CompressError(Exception):
    """Base of every error that compress raises on purpose."""


class RecipeError(CompressError, ValueError):
    """An option, an override or a recipe file that cannot be used.

    Also a ValueError, so that a config that refuses its own values is collected with the other problems of a recipe.
    """


class ModelError(CompressError):
    """A model file that cannot be read, or a module that cannot be run."""


class UntrustedPickleError(ModelError):
    """A pickle whose globals are not all on the list of what may be loaded."""


class DataError(CompressError):
    """A data source that cannot be read, is not valid, or does not fit the model."""


class ExportError(CompressError):
    """A model that cannot be written as ONNX, or an ONNX file that does not agree with its model."""


class QuantizationError(CompressError):
    """An ONNX graph that cannot be quantized, or whose quantized form is not valid."""


class MeasurementError(CompressError):
    """A session that is not what was asked for, or a measurement that cannot be trusted."""


class PruningError(CompressError):
    """Channels that cannot be cut, a cut model that is not what it should be, or a target out of reach."""


class SparsityError(CompressError):
    """A sparsity that cannot be reached, or zeros that did not hold."""


class ReportError(CompressError):
    """A report.json that is missing, broken, of a newer version, or not what its schema says."""


class WorkspaceError(CompressError):
    """A run directory that is in use, cannot be written, or is full."""


_LONGEST = 300  # characters of another's error: some tell the whole signature of a C++ function


def first_line(error: BaseException) -> str:
    """What to tell of a library's error: the first line of its text, cut where it is very long; else its type."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
