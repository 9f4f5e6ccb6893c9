"""Pictures: the same values give the same bytes, and many layers stay readable."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.reporting.plot_weights import NAMED, most_sensitive, plot_histograms, plot_parameters, plot_sensitivity
from compress.reporting.plots import Kind, inline_svg, new_figure, picture, save_pictures, short
from compress.sparsity.sensitivity import LayerSensitivity, Sensitivity, Suggestion
from compress.sparsity.weights_summary import LayerWeights


def scan_of(layers: int) -> Sensitivity:
    """Layer i loses i hundredths at the highest rate."""
    return Sensitivity(
        rates=(0.0, 0.5, 0.9),
        layers=tuple(
            LayerSensitivity(
                f"features.{i}.block.conv", f"features.{i}.block.conv.weight", 10, (0.9, 0.9, 0.9 - i / 100)
            )
            for i in range(layers)
        ),
        baseline=0.9,
        n=1000,
        measured_in="accuracy",
    )


def weights_of(layers: int) -> list[LayerWeights]:
    return [
        LayerWeights(f"layer{i}.weight", 100 * (i + 1), 10 * (i + 1), (-1.0, 0.0, 1.0), (50, 50), (5, 5))
        for i in range(layers)
    ]


def labels(svg: bytes) -> str:
    """Text is drawn as outlines; matplotlib leaves it in comments."""
    return svg.decode()


@pytest.mark.parametrize("layers", [1, 14])
def test_the_same_values_give_the_same_picture(layers: int) -> None:
    suggestion = Suggestion({f"features.{i}.block.conv": 0.5 for i in range(layers)}, 0.5, 0.0, 0.01)

    def draw() -> list[bytes]:
        figures = (
            plot_sensitivity(scan_of(layers), suggestion),
            plot_parameters(weights_of(layers)),
            plot_histograms(weights_of(min(layers, 3)), weights_of(1)[0]),
        )
        return [picture(figure, kind) for figure in figures for kind in get_args(Kind)]

    first = draw()
    assert first == draw()
    assert all(content.startswith(b"<?xml") for content in first[::2])
    assert all(content.startswith(b"\x89PNG") for content in first[1::2])


def test_an_svg_tells_neither_the_date_nor_the_software() -> None:
    svg = picture(plot_parameters(weights_of(2)), "svg")
    assert b"<dc:date>" not in svg
    assert b"Matplotlib" not in svg


def test_both_kinds_are_written_and_named(tmp_path: Path) -> None:
    assert save_pictures(new_figure(), tmp_path / "new", "empty") == ("empty.svg", "empty.png")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"empty.svg", "empty.png"}


def test_an_inline_svg_has_no_prologue() -> None:
    assert inline_svg(new_figure()).startswith("<svg ")


def test_the_most_sensitive_layers_are_named_and_the_others_counted() -> None:
    scan = scan_of(60)
    assert [layer.name for layer in most_sensitive(scan)][:2] == ["features.59.block.conv", "features.58.block.conv"]
    svg = labels(picture(plot_sensitivity(scan), "svg"))
    assert f"features.{60 - NAMED}.block.conv" in svg
    assert f"features.{59 - NAMED}.block.conv" not in svg
    assert f"{60 - NAMED} others" in svg


def test_a_bar_tells_what_stays_of_each_layer() -> None:
    svg = labels(picture(plot_parameters(weights_of(60)), "svg"))
    assert "600 of 6,000 (10.0%)" in svg
    assert "10 of 100 (10.0%)" in svg


def test_histograms_are_of_the_largest_layers() -> None:
    svg = labels(picture(plot_histograms(weights_of(60)), "svg"))
    assert "layer59.weight" in svg
    assert "layer0.weight" not in svg


@given(st.text(min_size=1, max_size=80), st.integers(5, 40))
def test_a_short_name_fits_and_begins_as_the_name_does(name: str, length: int) -> None:
    shown = short(name, length)
    assert len(shown) <= length
    assert shown[0] == name[0]
    if len(name) <= length:
        assert shown == name


def test_short_names_of_the_layers_of_one_model_differ() -> None:
    names = [f"features.{i}.block.{j}.conv_normalisation_activation.{k}" for i in range(20) for j in "01" for k in "01"]
    assert len({short(name) for name in names}) == len(names)
    assert short(names[-1]) == "featur….19.block.1.conv_n….1"
