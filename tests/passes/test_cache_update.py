"""A cache that a model writes to is recognized, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from singlecard.passes import simplify
from tests.graphs import fired, program_of, simplified, targets

Model = Callable[..., torch.Tensor]


def inputs(length: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 3, length, 4), torch.tensor([4]), torch.randn(2, 3, 8, 4)


def model_of(places: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Model:
    def model(new: torch.Tensor, at: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        new = new * 1.5
        cache.index_copy_(2, places(at, new), new)
        return cache.sum()

    return model


consecutive = model_of(lambda at, new: at + torch.arange(new.shape[2]))


@pytest.mark.parametrize("length", [1, 3])
def test_consecutive_places_are_one_update(length: int) -> None:
    """Not recognized, the whole cache is copied for each word."""
    program = simplified(consecutive, *inputs(length))
    assert "singlecard.update_cache.default" in targets(program)


def test_any_single_place_is_one_update() -> None:
    """A step may name its place itself, without counting."""
    program = simplified(model_of(lambda at, new: at), *inputs(1))
    assert "singlecard.update_cache.default" in targets(program)


def test_lengths_that_vary_are_one_update() -> None:
    """A prompt of any length is written in place too, also where one engine serves them all."""
    new, at, cache = inputs(3)
    torch._dynamo.mark_dynamic(new, 2)
    program = program_of(consecutive, new, at, cache)
    simplify(program)
    program.check()
    assert "name_cache_update" in fired(program)


def test_cache_of_unknown_length_is_left() -> None:
    """The layer takes a cache of known length: named all the same, it would stay in PyTorch."""
    program = program_of(consecutive, *inputs(3), dynamic=True)
    simplify(program)
    assert "name_cache_update" not in fired(program)


def read_before(new: torch.Tensor, at: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    new, at = new * 1.5, at + torch.arange(3)
    before = cache.sum()
    cache.index_copy_(2, at, new)
    return before + cache.sum()


def not_kept(new: torch.Tensor, at: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    new, at = new * 1.5, at + torch.arange(3)
    return cache.index_copy(2, at, new)


def other_axis(new: torch.Tensor, at: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    new, at = new * 1.5, at - at + torch.arange(3)
    cache.index_copy_(1, at, new[:, :, :1].expand(2, 3, 8, 4))
    return cache.sum()


@pytest.mark.parametrize(
    "model",
    [model_of(lambda at, new: at + torch.tensor([2, 0, 1])), read_before, not_kept, other_axis],
)
def test_near_miss_is_left(model: Model) -> None:
    """Written in place, these would lose what is read after, or the caller's own cache."""
    assert "name_cache_update" not in fired(simplified(model, *inputs(3)))
