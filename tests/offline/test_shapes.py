"""Sizes of inputs, written on a command line or in a build file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from singlecard.axes import Axes, Range, axes_from_text, remarks_on
from singlecard.errors import OptionError
from singlecard.offline.fitting import fit
from singlecard.report.arguments import arguments_of
from singlecard.report.model import Model
from singlecard.report.ranges import read_axes


class Nested(nn.Module):
    def forward(self, ids, batch, *, mask):
        return ids, batch, mask


def nested() -> Model:
    batch = {"images": [torch.zeros(1, 3), torch.ones(1, 3)]}
    mask = torch.tensor([[True, False, False]])
    return Model("m.py:nested", Nested(), (torch.tensor([[5, 6, 7]]), batch), {"mask": mask})


def varying(model: Model) -> Axes:
    return read_axes(model.dynamic_shapes, arguments_of(model.module, model.args, model.kwargs))


def test_text_is_read_as_it_is_meant() -> None:
    """A range that is read as another builds the wrong engine, which nobody notices."""
    assert axes_from_text(["a=1:8:32,128; b=,3", "c.0=4:4:4"]) == {
        "a": {0: Range(1, 8, 32), 1: Range(128, 128, 128)},
        "b": {1: Range(3, 3, 3)},
        "c.0": {0: Range(4, 4, 4)},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("1:8:32", ["names no input"]),
        ("=1:8:32", ["names no input"]),
        ("a=", ["'a'", "no size"]),
        ("a=x", ["'x'"]),
        ("a=-1", ["'-1'"]),
        ("a=0", [">= 1"]),
        ("a=3,1:8", ["axis 1", "1:8:8"]),
        ("a=1:2:3:4", ["'1:2:3:4'"]),
        ("a=8:1:32", ["min <= opt <= max"]),
        ("a=1;a=2", ["'a' twice"]),
    ],
)
def test_malformed_text_is_refused(text: str, words: list[str]) -> None:
    """Everything that is built from it would be for nothing."""
    with pytest.raises(OptionError) as refused:
        axes_from_text([text])
    for word in words:
        assert word in str(refused.value)


def test_examples_take_the_usual_sizes_and_keep_their_values() -> None:
    """Token numbers beyond the vocabulary, or a mask of another kind, would not run."""
    texts = ["ids=1:2:8,2:4:16", "batch.images.1=2", "mask=1:2:8,2:4:16"]
    model = fit(nested(), axes_from_text(texts))
    ids, batch = model.args
    assert ids.tolist() == [[5, 6, 7, 5]] * 2
    assert [tuple(image.shape) for image in batch["images"]] == [(1, 3), (2, 3)]
    assert model.kwargs["mask"].tolist() == [[True, False, False, True]] * 2
    ranges = {0: Range(1, 2, 8), 1: Range(2, 4, 16)}
    assert varying(model) == {"0": ranges, "mask": ranges}


def test_a_usual_size_of_one_is_not_traced() -> None:
    """PyTorch would make it a constant, and the engine would have no range."""
    model = fit(nested(), axes_from_text(["ids=1:1:4"]))
    assert model.args[0].shape[0] == 2
    assert varying(model) == {"0": {0: Range(1, 1, 4)}}
    assert "axis 0 of ids" in remarks_on(axes_from_text(["ids=1:1:4"]))[0]


def test_names_that_the_model_lacks_are_told_with_those_it_has() -> None:
    """Names of inputs are long, and places count from 0."""
    with pytest.raises(OptionError, match="did you mean 'batch.images.1'") as refused:
        fit(nested(), axes_from_text(["batch.image.1=2"]))
    assert "ids, batch.images.0, batch.images.1, mask" in str(refused.value)
