"""Inputs are named as their caller names them."""

from __future__ import annotations

import pytest

from singlecard.capture.sources import input_path, is_of_module


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("L['x']", "x"),
        ("L['args'][0]", "0"),
        ("L['kwargs']['input_ids']", "input_ids"),
        ("L['batch']['images'][0]", "batch.images.0"),
        ("L['batch'].images", "batch.images"),
        ("L['args']", "args"),
    ],
)
def test_path_is_what_a_person_writes(source: str, path: str) -> None:
    """The option ``profiles`` finds an input by this name, or not at all."""
    assert input_path(source) == path


@pytest.mark.parametrize(
    ("source", "held"),
    [
        ("L['self']._modules['norm'].eps", True),
        ("L['fn']._parameters['weight']", True),
        ("L['self_attn']", False),
        ("L['args'][0]", False),
    ],
)
def test_what_a_module_holds_is_told_from_what_it_is_given(source: str, held: bool) -> None:
    """A number that the caller gives is another one in the next call, and no constant."""
    assert is_of_module(source) is held
