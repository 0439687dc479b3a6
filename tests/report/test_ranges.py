"""``dynamic_shapes``: an entry belongs to the argument that it names, in whatever form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from singlecard.axes import NUMBER, Range
from singlecard.errors import OptionError
from singlecard.report.arguments import Arguments, arguments_of
from singlecard.report.ranges import read_axes, to_dims, to_profile

X, Y = torch.ones(3, 8), torch.ones(5, 8)
WANTED = {"0": {0: Range(2, None, 7)}, "1": {0: Range(2, None, 31)}}


def two(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x * 2, y * 2


def any_number(*tensors: Tensor, **named: Tensor) -> Tensor:
    return tensors[0]


def with_defaults(x: Tensor, mask: Tensor | None = None, n: int = 3, *, y: Tensor) -> Tensor:
    return x


def nested(batch: dict[str, list[Tensor]]) -> Tensor:
    return batch["images"][1]


def call(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Arguments:
    return arguments_of(model, args, kwargs)


def collection() -> ShapesCollection:
    shapes = ShapesCollection()
    shapes[X], shapes[Y] = {0: Dim("a", min=2, max=7)}, {0: Dim("b", min=2, max=31)}
    return shapes


A, B = Dim("a", min=2, max=7), Dim("b", min=2, max=31)

OF_TWO: dict[str, Any] = {
    "by name": {"x": {0: (2, 7)}, "y": {0: (2, 31)}},
    "by name, in another order": {"y": {0: (2, 31)}, "x": {0: (2, 7)}},
    "by place": {0: {0: (2, 7)}, "1": {0: (2, 31)}},
    "by name and by place": {1: {0: (2, 31)}, "x": {0: (2, 7)}},
    "a tuple": ({0: (2, 7)}, {0: (2, 31)}),
    "a list": [{0: [2, 7]}, {0: [2, 31]}],
    "one entry for each axis": ([(2, 7), None], [(2, 31), None]),
    "axes as texts": {"x": {"0": (2, 7)}, "y": {"0": (2, 31)}},
    "fixed axes said": {"x": {0: (2, 7), 1: None}, "y": {0: (2, 31), 1: 8}},
    "named Dims": {"x": {0: A}, "y": {0: B, 1: Dim.STATIC}},
    "Dims in a tuple": ((A, None), (B, None)),
    "hints": {"x": {0: Dim.DYNAMIC(min=2, max=7)}, "y": {0: Dim.DYNAMIC(min=2, max=31)}},
    "what reading gives": WANTED,
}


@pytest.mark.parametrize("form", OF_TWO)
def test_every_form_gives_the_same_axes(form: str) -> None:
    """Ranges that land on another input build an engine for sizes that never come."""
    found = read_axes(OF_TWO[form], call(two, X, Y))
    assert found == WANTED and list(found) == ["0", "1"]


def test_a_collection_of_pytorchs() -> None:
    """It knows inputs by what they are, not by name."""
    assert read_axes(collection(), call(two, X, Y)) == WANTED


def test_arguments_by_keyword() -> None:
    """A model from transformers is called by keywords, in any order."""
    given = call(two, y=Y, x=X)
    for form in ("by name", "by name, in another order", "a tuple", "named Dims"):
        found = read_axes(OF_TWO[form], given)
        assert found == {"y": WANTED["1"], "x": WANTED["0"]}
    mixed = call(with_defaults, X, y=Y)
    for shapes in ({"y": {0: (2, 31)}}, ({}, {0: (2, 31)}), (None, {0: (2, 31)})):
        assert read_axes(shapes, mixed) == {"y": WANTED["1"]}
    assert read_axes({"x": None, "mask": None, "n": None, "y": {0: B}}, mixed) == {"y": WANTED["1"]}


@pytest.mark.parametrize(
    "shapes",
    [
        {"tensors": ({0: (2, 7)}, {0: (2, 31)})},
        {"tensors": (None, {0: (2, 31)}), 0: {0: (2, 7)}},
        ({0: (2, 7)}, {0: (2, 31)}),
        (({0: (2, 7)}, {0: (2, 31)}),),
        {"0": {0: (2, 7)}, "1": {0: (2, 31)}},
    ],
    ids=str,
)
def test_arguments_without_names(shapes: Any) -> None:
    """``forward(*tensors)`` has one name for all of them."""
    assert read_axes(shapes, call(any_number, X, Y)) == WANTED


def test_arguments_of_any_name() -> None:
    """``forward(**named)`` has none of its own."""
    given = call(any_number, X, y=Y)
    for shapes in ({"named": {"y": {0: (2, 31)}}}, {"y": {0: (2, 31)}}, "y=2:8:31"):
        assert list(read_axes(shapes, given)) == ["y"]


@pytest.mark.parametrize(
    "shapes",
    [
        {"batch": {"images": [None, {0: (2, 8)}]}},
        {"batch": {"images": (None, {0: (2, 8)})}},
        {"batch": {"images": {1: {0: (2, 8)}}}},
        {"batch.images.1": {0: (2, 8)}},
        {"0.images.1": {0: (2, 8)}},
        ({"images": [None, {0: (2, 8)}]},),
    ],
    ids=str,
)
def test_inputs_in_containers(shapes: Any) -> None:
    """A model that takes a batch as a dictionary has its sizes there."""
    found = read_axes(shapes, call(nested, {"images": [X, Y]}))
    assert found == {"0.images.1": {0: Range(2, None, 8)}}


def shared() -> Mapping[str, Any]:
    return {"x": {0: Dim("n", min=2, max=7)}, "y": {0: Dim("n", min=2, max=9)}}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"z": {0: (2, 7)}}, "names 'z', which is not among the arguments (x, y)"),
        ({"xx": {0: (2, 7)}}, "did you mean 'x'?"),
        ({2: {0: (2, 7)}}, "names 2"),
        ({"x.0": {0: (2, 7)}}, "names 'x.0'"),
        ({None: {0: (2, 7)}}, "names None"),
        ({"x": {2: (2, 7)}}, "x has 2 axes, none is 2: its shape is [3, 8]"),
        ({"x": {-1: (2, 7)}}, "none is -1"),
        ({"x": {True: (2, 7)}}, "none is True"),
        ({"x": {"rows": (2, 7)}}, "none is 'rows'"),
        ({"x": [None, None, (2, 7)]}, "none is 2"),
        ({"x": {0: (7, 2)}}, "x, axis 0 has min 7 > max 2"),
        ({"x": {0: (2, 9, 7)}}, "x, axis 0: got 2, 9, 7"),
        ({"x": {0: "2:9:7"}}, "x, axis 0: got 2:9:7"),
        ({"x": {0: (0, 7)}}, "x, axis 0 has 0: sizes are integers >= 1"),
        ({"x": {0: (4, 7)}}, "x, axis 0 is 3 in the example, outside of its range"),
        ({"x": {0: 4}}, "one size 4, and the example has 3"),
        ({"x": 7}, "does not fit x: got 7"),
        ({"x": (2, 7)}, "x, axis 0 is to have the one size 2, and the example has 3"),
        ({"x": {0: (2, 7)}, 0: {0: (2, 7)}}, "gives 'x' twice"),
        (shared(), "Dim 'n' has two ranges"),
        ({"x": {0: Dim("n")}, "y": {0: Dim("n")}}, "which is 3 in the example"),
        (({}, {}, {}), "has 3 entries, args 2"),
        (7, "does not fit args: got 7"),
        ({"x": {0: 2.5}}, "x, axis 0 has 2.5"),
    ],
    ids=str,
)
def test_what_fits_nothing(shapes: Any, words: str) -> None:
    """Left out in silence, an axis stays fixed, and the first customer finds out."""
    with pytest.raises(OptionError) as refused:
        read_axes(shapes, call(two, X, Y))
    assert words in str(refused.value)
    assert str(refused.value).startswith("dynamic_shapes")


@pytest.mark.parametrize(
    ("given", "shapes", "words"),
    [
        (call(two, torch.ones(1, 8), Y), {"x": {0: (1, 7)}}, "PyTorch compiles as a constant"),
        (call(with_defaults, X, y=Y), {"mask": {0: (2, 7)}}, "leave out: give an example for it"),
        (call(two, X, "text"), {"y": {0: (2, 7)}}, "does not fit y: it is a str"),
        (call(two, X, None), {"y": {0: (2, 7)}}, "does not fit y"),
        (call(two, X, True), {"y": (1, 2)}, "does not fit y: it is a bool"),
        (call(nested, {"images": [X]}), {"batch": {"image": []}}, "did you mean 'images'?"),
        (call(nested, {"images": [X]}), {"batch": {"images": [None, {}]}}, "2 entries"),
        (call(nested, {"images": [X]}), {"batch": 3}, "does not fit batch: got 3 for a dict"),
    ],
)
def test_what_fits_nothing_of_these(given: Arguments, shapes: Any, words: str) -> None:
    """The argument is named as the model names it."""
    with pytest.raises(OptionError) as refused:
        read_axes(shapes, given)
    assert words in str(refused.value)


def test_numbers_have_ranges_too() -> None:
    """torch.export lets an integer argument vary."""
    given = call(with_defaults, X, None, 5, y=Y)
    axes = read_axes({"n": (2, 50)}, given)
    assert axes == {"2": {NUMBER: Range(2, None, 50)}} == read_axes(axes, given)
    placed, _ = to_dims(axes, given)
    assert (placed[2].min, placed[2].max) == (2, 50)
    assert to_profile(axes, given) == ()


def test_ranges_of_engines() -> None:
    """Both ends are known to an engine; what is open ends where PyTorch's own ranges do."""
    given = call(two, X, Y)
    axes = read_axes({"x": {0: (2, 5, 7)}, "y": {0: (4, None)}}, given)
    first, second = to_profile(axes, given)
    assert (first.smallest, first.usual, first.largest) == (2, 5, 7)
    assert (second.input, second.smallest, second.largest) == ("1", 4, 4096)
    assert to_profile(read_axes({"x": {0: Dim.DYNAMIC}}, given), given) == ()


class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("model", "args", "kwargs", "words"),
    [
        (Model(), X, None, "args is a Tensor: write (x,)"),
        (Model(), {"x": X}, None, "give arguments by name as kwargs"),
        (Model(), None, None, "args is a NoneType"),
        (Model(), "x", None, "args is a str"),
        (Model(), (X,), [X], "kwargs is a list"),
        (Model(), (X,), {1: X}, "kwargs is a dict"),
        (Model, (X,), None, "the model is the class Model"),
        (3, (X,), None, "got int as the model"),
        (None, (X,), None, "got NoneType as the model"),
    ],
)
def test_what_is_no_call(model: Any, args: Any, kwargs: Any, words: str) -> None:
    """A tensor in place of a tuple would be taken apart along its batch."""
    with pytest.raises(OptionError) as refused:
        arguments_of(model, args, kwargs)
    assert words in str(refused.value)
