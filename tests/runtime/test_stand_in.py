"""The stand-in has what the real classes have: what is tested against it is tested for them."""

from __future__ import annotations

import inspect
import re

import pytest
import tensorrt_rtx as real

from singlecard.network.card import Card
from tests.runtime import stand_in
from tests.runtime.memory import HostCard
from tests.runtime.stand_in import CLASSES, Machine, Misuse


def _public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_member_is_one_of_the_real_class(kind: type) -> None:
    """A method that TensorRT does not have would pass here, and fail on the user's card."""
    genuine = getattr(real, kind.__name__)
    for name in _public(kind):
        assert hasattr(genuine, name), name
        ours, theirs = getattr(kind, name), getattr(genuine, name)
        assert isinstance(ours, property) == isinstance(theirs, property), name
        if isinstance(ours, property):
            assert (ours.fset is None) == (theirs.fset is None), name


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_arguments_have_the_real_names_and_order(kind: type) -> None:
    """Addresses and sizes are all integers: exchanged, they would corrupt the card's memory."""
    genuine = getattr(real, kind.__name__)
    for name in _public(kind):
        if isinstance(getattr(kind, name), property):
            continue
        ours = [
            item for item in inspect.signature(getattr(kind, name)).parameters if item != "self"
        ]
        doc = getattr(genuine, name).__doc__
        overloads = [
            re.findall(r", (\w+): ", found)
            for found in re.findall(rf"{name}\((self: [^\n]*)\) ->", doc)
        ]
        assert ours in overloads, (name, ours, overloads)


def test_the_card_that_is_none_has_the_members_of_the_real_one() -> None:
    """What runs only here would be a runtime for tests."""
    ours, genuine = set(vars(HostCard)), set(_public(Card)) | {"stream", "empty"}
    assert {name for name in ours if not name.startswith("_")} - {"on", "elsewhere"} <= genuine
    assert set(_public(Card)) - {"device", "bytes"} <= ours


def test_enumerations_are_the_real_ones() -> None:
    """A strategy by a wrong name would be refused only on the card."""
    for name in stand_in.ENUMS:
        assert hasattr(real, name), name


def test_what_the_real_classes_lack_is_refused(machine: Machine) -> None:
    """The stand-in would let a typing error in a setting through."""
    config = stand_in.IRuntimeConfig(machine)
    with pytest.raises(Misuse, match="has no cuda_graphs"):
        config.cuda_graphs = True  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        config.cuda_graph_strategy = True
