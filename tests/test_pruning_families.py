"""Every family of torchvision loses half of its channels, and computes what it would without them.

At small inputs; where a constructor has hidden layers of thousands or dozens of blocks, the same class with fewer.
`benchmarks.families` does the same with the real ones, at their own resolution.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from benchmarks.families import build, enliven, kept_by_values, readers, trains, variation
from compress.models import ensure_operators
from compress.pruning import PrunedModel, channel_groups, prune, relative_error
from compress.pruning.exactness import evaluate, relative_effect, signature
from compress.pruning.outputs import leaves
from compress.pruning.traced import TracedModule
from compress.pruning.values import Kept

ensure_operators()
from torchvision.models.convnext import CNBlockConfig, ConvNeXt  # noqa: E402
from torchvision.models.densenet import DenseNet  # noqa: E402
from torchvision.models.maxvit import MaxVit  # noqa: E402
from torchvision.models.resnet import Bottleneck, ResNet  # noqa: E402
from torchvision.models.swin_transformer import SwinTransformer  # noqa: E402
from torchvision.models.vision_transformer import VisionTransformer  # noqa: E402

EXACT = 1e-4  # relative, as the contract has it; in float64 a right cut is within 1e-12
OUTPUT = "reaches the output of the model"

Maker = Callable[[], nn.Module]


def narrow(name: str, width: int = 128) -> nn.Module:
    """An AlexNet or VGG whose three linear layers have ``width`` hidden units in place of 4,096."""
    module = build(name, num_classes=10)
    classifier = module.get_submodule("classifier")
    linear = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
    sizes = [linear[0].in_features, width, width, 10]
    smaller: dict[nn.Module, nn.Module] = {
        old: nn.Linear(*ends) for old, ends in zip(linear, itertools.pairwise(sizes), strict=True)
    }
    module.add_module("classifier", nn.Sequential(*(smaller.get(m, m) for m in classifier.children())))
    return module


def built(name: str) -> Maker:
    return functools.partial(build, name, num_classes=10)


def resnet(**widths: int) -> Maker:
    return lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10, **widths)


# name -> how it is made, pixels of a side, whether its class runs on (else it is traced)
CLASSIFIERS: dict[str, tuple[Maker, int, bool]] = {
    "alexnet": (functools.partial(narrow, "alexnet"), 64, True),
    "vgg": (functools.partial(narrow, "vgg11"), 32, True),
    "vgg_bn": (functools.partial(narrow, "vgg13_bn"), 32, True),
    "resnet18": (built("resnet18"), 64, True),
    "resnet, bottleneck": (resnet(), 64, True),
    "wide_resnet": (resnet(width_per_group=128), 64, True),
    "resnext": (resnet(groups=32, width_per_group=4), 64, True),
    "densenet": (lambda: DenseNet(8, (2, 3, 3, 2), 16, num_classes=10), 64, True),
    "googlenet": (built("googlenet"), 96, True),
    "inception_v3": (built("inception_v3"), 299, True),  # its auxiliary head needs all of them
    "squeezenet": (built("squeezenet1_1"), 64, True),
    "mobilenet_v2": (built("mobilenet_v2"), 64, True),
    "mobilenet_v3": (built("mobilenet_v3_small"), 64, True),
    "shufflenet_v2": (built("shufflenet_v2_x0_5"), 64, True),
    "mnasnet": (built("mnasnet0_5"), 64, True),
    "efficientnet": (built("efficientnet_b0"), 64, True),
    "regnet_x": (built("regnet_x_400mf"), 64, True),
    "regnet_y": (built("regnet_y_400mf"), 64, True),
    "convnext": (lambda: ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=10), 32, True),
    "vit": (lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10), 32, False),
    "swin": (lambda: SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10), 32, False),
    "maxvit": (lambda: MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.1, num_classes=10), 64, False),
}
DENSE: dict[str, tuple[Maker, int, bool]] = {
    "fcn_resnet50": (functools.partial(build, "fcn_resnet50", num_classes=5), 64, True),
    "deeplabv3_mobilenet_v3_large": (functools.partial(build, "deeplabv3_mobilenet_v3_large", num_classes=5), 64, True),
    "lraspp_mobilenet_v3_large": (functools.partial(build, "lraspp_mobilenet_v3_large", num_classes=5), 64, True),
    "faster r-cnn": (functools.partial(build, "fasterrcnn_resnet50_fpn.backbone"), 64, True),
    "ssdlite": (functools.partial(build, "ssdlite320_mobilenet_v3_large.backbone"), 96, True),
}
MODELS = CLASSIFIERS | DENSE
LONG = ("inception_v3", "maxvit")

# Of half the feed-forward units and half the heads, as examples; and the groups that layer normalisation takes in.
UNITS = {
    "vit": {"encoder.layers.encoder_layer_0.mlp.0": 32, "encoder.layers.encoder_layer_0.self_attention": 2},
    "swin": {"features.1.0.mlp.0": 32, "features.1.0.attn.qkv": 1, "features.3.1.attn.qkv": 2},
    "convnext": {"features.1.0.block.3": 32, "features.3.1.block.3": 64},
    "maxvit": {
        "blocks.0.layers.0.layers.grid_attention.mlp_layer.1": 32,
        "blocks.1.layers.0.layers.window_attention.attn_layer.1.to_qkv": 2,
    },
}
STREAMS = {
    "vit": ["conv_proj"],
    "swin": ["features.0.0", "features.2.reduction"],
    "convnext": ["features.0.0", "features.2.1"],
    "maxvit": ["blocks.0.layers.0.layers.MBconv.proj.1", "blocks.1.layers.0.layers.MBconv.proj.1"],
}


@dataclass(frozen=True)
class Halved:
    """A model and what is left of it; tests leave both as they are."""

    name: str
    module: nn.Module
    pruned: PrunedModel
    inputs: Tensor  # (2, 3, H, W)


@pytest.fixture(scope="module")
def halved(request: pytest.FixtureRequest) -> Halved:
    make, size, _ = MODELS[request.param]
    torch.manual_seed(0)
    samples = torch.randn(4, 3, size, size)
    module = enliven(make(), samples)
    return Halved(request.param, module, prune(module, samples[:2], ratio=0.5, round_to=1), samples[:2])


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrises the fixture; what takes long is marked."""
    marked = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]
    return pytest.mark.parametrize("halved", marked, indirect=True)


@each(MODELS)
def test_a_halved_family_computes_what_the_original_does_without_the_removed_channels(halved: Halved) -> None:
    pruned, inputs = halved.pruned, (halved.inputs,)
    error = relative_error(halved.module, pruned.module, pruned.groups, pruned.kept, inputs)
    # Against how far two samples are apart, too: outputs that hang on the last bias alone would prove nothing.
    assert error < EXACT * min(1.0, variation(evaluate(pruned.module, inputs)))
    assert relative_effect(halved.module, pruned.groups, pruned.kept, inputs) > 100 * EXACT


@each(MODELS)
def test_all_channels_but_those_of_the_outputs_can_leave(halved: Halved) -> None:
    for group in halved.pruned.groups:
        if group.frozen is None:
            assert halved.pruned.widths[group.name] == group.channels - group.channels // 2
        elif group.frozen != OUTPUT:  # a stage of shufflenet_v2 whose shuffles leave no channel apart from the others
            assert (halved.name, group.frozen) == ("shufflenet_v2", "its channels can only leave all together")
    assert sum(group.frozen is None for group in halved.pruned.groups) >= 5


@each(MODELS)
def test_a_halved_family_keeps_its_class_where_its_forward_allows_it_and_its_outputs_always(halved: Halved) -> None:
    module, smaller, inputs = halved.module, halved.pruned.module, (halved.inputs,)
    assert isinstance(smaller, type(module) if MODELS[halved.name][2] else TracedModule)
    assert signature(evaluate(smaller, inputs)) == signature(evaluate(module, inputs))
    left = sum(p.numel() for p in smaller.parameters()) / sum(p.numel() for p in module.parameters())
    assert 0.2 < left < 0.4  # weights lose both rows and columns; a backbone's feature maps stay whole


@each(CLASSIFIERS)
def test_a_halved_family_trains_with_its_auxiliary_heads(halved: Halved) -> None:
    module, smaller = (copy.deepcopy(m) for m in (halved.module, halved.pruned.module))
    assert trains(smaller, halved.inputs) == "yes"
    expected, found = (m.train()(halved.inputs) for m in (module, smaller))
    assert type(found) is type(expected)
    assert [t.shape for _, t in leaves(found)] == [t.shape for _, t in leaves(expected)]
    assert len(found) == {"googlenet": 3, "inception_v3": 2}.get(halved.name, len(halved.inputs))


@each(["vit", "swin", "convnext", "maxvit"])
def test_transformers_lose_feed_forward_units_and_whole_heads(halved: Halved) -> None:
    widths, units = halved.pruned.widths, UNITS[halved.name]
    assert {group: widths[group] for group in units} == units
    # Layer normalisation over the residual stream: those groups say that they are not exact, and no others do.
    assert [g.name for g in halved.pruned.groups if not g.exact] == STREAMS[halved.name]


@each(["mobilenet_v2"])
def test_what_somebody_else_kept_is_found_by_its_values(halved: Halved) -> None:
    names = dict(halved.module.named_parameters())
    expected = {name: axes for name, axes in halved.pruned.kept.items() if name in names}
    found = kept_by_values(halved.module, halved.pruned.module)
    assert plain(found) == plain(expected)


@each(["resnext"])
def test_somebody_elses_cut_is_judged_without_our_groups(halved: Halved) -> None:
    module, smaller, inputs = halved.module, copy.deepcopy(halved.pruned.module), (halved.inputs,)
    kept = kept_by_values(module, smaller)
    assert relative_error(module, smaller, [readers(module, kept)], kept, inputs) < EXACT
    with torch.no_grad():  # a reader whose columns are in another order than the channels
        weight = smaller.get_parameter("layer2.0.conv1.weight")
        weight.copy_(weight.roll(1, dims=1))
    assert relative_error(module, smaller, [readers(module, kept)], kept, inputs) > 100 * EXACT


def plain(kept: Kept) -> dict[str, dict[int, list[int]]]:
    return {name: {axis: index.tolist() for axis, index in axes.items()} for name, axes in kept.items()}


def test_untrained_scales_that_vanish_are_made_to_matter() -> None:
    make, size, _ = CLASSIFIERS["convnext"]
    module = make()
    scale = module.get_parameter("features.1.0.layer_scale")
    assert float(scale.detach().abs().amax()) < 1e-5
    enliven(module, torch.randn(2, 3, size, size))
    assert float(scale.detach().abs().median()) > 0.05


@each(["resnet18", "shufflenet_v2", "vit"])
def test_groups_do_not_depend_on_the_size_of_the_batch(halved: Halved) -> None:
    one = channel_groups(halved.module, halved.inputs[:1])
    two = halved.pruned.groups
    assert [(g.name, g.channels, g.frozen) for g in one] == [(g.name, g.channels, g.frozen) for g in two]
