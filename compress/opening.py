"""Before the first stage: the model file and the data source become values that fit each other."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compress import __version__, models
from compress.data import Data, load_data, synthetic
from compress.errors import DataError, ModelError, RecipeError
from compress.measurement import outputs_of
from compress.measurement.accuracy import accuracy
from compress.measurement.metrics import Metric, load_metric
from compress.recipe import Recipe
from compress.values import Context, InputSpec, Model, OnnxModel, Progress, State
from compress.workspace import fingerprint

logger = logging.getLogger(__name__)

GLANCE = 1000  # samples that tell whether a model has learnt anything


@dataclass(frozen=True)
class Opened:
    """A model and its data, checked against each other."""

    source: models.Source
    data: Data | None
    original: Model | None  # None: the source is ONNX
    state: State  # what the first stage is given
    example: tuple[torch.Tensor, ...]  # two samples of each input, (2, …): real ones where there is data
    notes: tuple[str, ...]  # what was done to the model, and what looks wrong, one line each, for the report
    identity: str  # sha256 of the model's and the data's bytes and of how they are read
    device: str  # cpu or cuda
    metric: Metric | None = None  # of the user's own: what every drop is measured in; None: accuracy, or fidelity

    def needs_torch(self, command: str) -> Model:
        """The torch model, or the reason why ``command`` cannot use this source."""
        if self.original is None or self.source.skips:
            raise ModelError(f"{command} needs a torch module: {self.source.skips}.")
        return self.original

    def needs_classifier(self, command: str) -> Model:
        """`needs_torch`, of the one task whose fine-tuning and scores are known.

        Raises:
            ModelError: there is no torch model, or it does not give scores of classes.
        """
        model = self.needs_torch(command)
        if model.task != "classification":
            raise ModelError(
                f"{command} fine-tunes or scores a classifier, whose first output is (N, C) scores with C >= 2: this "
                "model gives something else. `compress pipeline` exports, quantizes and times such models."
            )
        return model

    def context(self, directory: Path, recipe: Recipe, progress: Progress, cache: Path | None = None) -> Context:
        return Context(
            data=self.data,
            directory=directory,
            original=self.original,
            max_drop=recipe.max_drop,
            seed=recipe.seed,
            device=self.device,
            progress=progress,
            objective=recipe.objective,
            stored="float32" if "quantize" in recipe.skip else "int8",
            cache=cache,
            metric=self.metric,
        )


def open_inputs(recipe: Recipe, progress: Progress) -> Opened:
    """Load the model and the data of ``recipe``, run the model once on real samples, and say what does not fit.

    Raises:
        ModelError, DataError, RecipeError: in one or two lines.
    """
    metric = None if recipe.benchmark.metric is None else load_metric(recipe.benchmark.metric)
    progress("reading the model", 0, 0)
    source = _read_model(recipe)
    if source.fixed_batch is not None:
        raise ModelError(
            f"{source.path} runs batches of {source.fixed_batch} alone, which is not enough here. Export it "
            "with a free axis 0, or free that of each input and output with onnx.tools.update_model_dims."
        )
    data = _read_data(recipe, source, progress)
    inputs = data.inputs if data is not None else recipe.input_specs() or source.inputs
    if not inputs or any(0 in spec.shape for spec in inputs):  # 0: a free axis of an ONNX file
        raise RecipeError(
            f"{source.path} does not say what its inputs look like, and there is no data to tell. "
            "Give --data, or the sizes of one sample as --input 3x224x224."
        )
    identity = fingerprint(
        compress=__version__,
        model=source.sha256,
        data=data.sha256 if data is not None else None,
        inputs=inputs,
        factory=[recipe.factory, recipe.factory_args, _digest(recipe.factory)],
        **({} if metric is None else {"metric": [metric.spec, _digest(metric.spec)]}),
    )
    device = _device(recipe.device)
    samples = (data or synthetic(inputs)).calibration
    example = samples.fetch(samples.indices[:2])[0]
    if source.onnx is not None:
        onnx = replace(source.onnx, inputs=_fitting(source.onnx.inputs, inputs, source, data))
        notes = (*source.notes, *_at_chance(onnx, data))
        return Opened(source, data, None, State(model=None, onnx=onnx), example, notes, identity, device, metric)
    original = _judged(models.bind(source, inputs, example), data)
    if data is not None and data.classes is not None:
        models.check_labels(original, example, data.classes)
    notes = (*source.notes, *(_at_chance(original, data) if recipe.model is not None else ()))
    return Opened(source, data, original, State(model=original), example, notes, identity, device, metric)


def _digest(spec: str | None) -> str:
    """Of the user's code that ``spec`` names."""
    return hashlib.sha256(models.source_of(spec)).hexdigest()


def _read_model(recipe: Recipe) -> models.Source:
    if recipe.model is None:
        if recipe.factory is None:
            raise RecipeError("there is no model. Give a file, or --factory MODULE:CALLABLE for new weights.")
        return models.load_new(recipe.factory, recipe.factory_args, recipe.seed)
    return models.load(
        recipe.model,
        factory=recipe.factory,
        factory_args=recipe.factory_args,
        trust=recipe.trust,
        trust_pickle=recipe.trust_pickle,
    )


def _read_data(recipe: Recipe, source: models.Source, progress: Progress) -> Data | None:
    """The data, its images with the channels that the model takes; None where the recipe names none."""
    if recipe.data is None:
        return None
    progress("reading the data", 0, 0)
    options = recipe.preprocess
    if recipe.benchmark.metric is not None and options.labels:
        options = replace(options, labels="any")
    if options.channels is None and not recipe.data.startswith(("csv:", "python:")):
        options = replace(options, channels=_image_channels(source))
    return load_data(recipe.data, options, beside=None if recipe.model is None else recipe.model.parent)


def _judged(model: Model, data: Data | None) -> Model:
    """The model as its labels are: those that a metric takes and that are no classes are not those of a classifier."""
    if data is None or data.classes is not None:
        return model
    labels = data.validation.fetch(data.validation.indices[:1])[1]
    return model if labels is None else replace(model, task="other")


def _at_chance(model: Model | OnnxModel, data: Data | None) -> tuple[str, ...]:
    """A warning where the model is no better than guessing: told now, not after an hour of fine-tuning."""
    if data is None or data.classes is None or model.task != "classification":
        return ()
    found = accuracy(outputs_of(model, data.validation.take(GLANCE)))
    if found.low > 1 / data.classes:
        return ()
    note = (
        f"the original model is right on {found.value:.1%} of {found.n} validation samples, no better than chance with "
        f"{data.classes} classes: do --mean, --std and the order of the classes match its training?"
    )
    logger.warning("%s", note)
    return (note,)


def _fitting(
    wanted: tuple[InputSpec, ...], given: tuple[InputSpec, ...], source: models.Source, data: Data | None
) -> tuple[InputSpec, ...]:
    """The inputs of an ONNX file, once the samples are known to fit them; they tell the sizes of its free axes."""
    if data is None and len(wanted) != len(given):
        raise RecipeError(f"{source.path} has {len(wanted)} inputs: give --input once for each.")
    if len(wanted) == len(given):
        wanted = tuple(_sized(own, sample) for own, sample in zip(wanted, given, strict=True))
    shapes = [(spec.shape, spec.dtype) for spec in wanted]
    if shapes != [(spec.shape, spec.dtype) for spec in given]:
        found = ", ".join(f"{spec.shape} {spec.dtype}" for spec in given)
        needs = ", ".join(f"{spec.shape} {spec.dtype}" for spec in wanted).replace("(0,", "(any,").replace(" 0", " any")
        if data is None:
            raise RecipeError(f"{source.path} takes samples of {needs}, but --input tells {found}. Write 48:int64.")
        raise DataError(f"{source.path} takes samples of {needs}, but the data has {found}. See --size and --channels.")
    return wanted


def _sized(own: InputSpec, sample: InputSpec) -> InputSpec:
    """An input of a file, its free axes with the sizes of a sample."""
    if len(own.shape) != len(sample.shape):
        return own
    sizes = tuple(sample.shape[axis] if axis in own.free else size for axis, size in enumerate(own.shape))
    return replace(own, shape=sizes)


def _image_channels(source: models.Source) -> int | None:
    """The channels that images must have for this model, where it takes grey or colour images."""
    wanted: int | None = None
    if source.module is not None:
        wanted = models.wanted_channels(source.module)
    elif source.inputs is not None and len(source.inputs) == 1 and len(source.inputs[0].shape) == 3:
        wanted = source.inputs[0].shape[0]  # of an ONNX file: (C, H, W)
    return wanted if wanted in (1, 3) else None


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: this torch sees no CUDA device. Give --device cpu, or see `compress doctor`.")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked
