"""Ops that change nothing are dropped, and nothing else is."""

from __future__ import annotations

import torch

from singlecard.passes import simplify
from tests.graphs import fired, program_of, simplified, targets


def test_copy_is_dropped() -> None:
    """A user would pay a kernel and the memory of a copy that no answer needs."""
    program = simplified(lambda x: x.clone() + 1, torch.randn(3))
    assert "drop_copy" in fired(program)
    assert targets(program) == ["aten.add.Tensor"]


def test_copy_before_strided_look_stays() -> None:
    """as_strided reads memory by its layout: without the copy it would read other elements."""
    x = torch.arange(6.0).view(2, 3)

    def look(x: torch.Tensor) -> torch.Tensor:
        return torch.as_strided(x.t().clone(memory_format=torch.contiguous_format), (2, 2), (1, 2))

    program = simplified(look, x)
    assert "aten.clone.default" in targets(program)


def test_strides_of_the_same_places_are_dropped() -> None:
    """Averages of channels-last images end in such a look: with a batch that varies it would cut
    the engine in two, and without one it would be a gather."""

    def average(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x * 2, 1) + 1

    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for dynamic in (False, True):
        program = program_of(average, x, dynamic=dynamic)
        assert "aten.as_strided.default" in targets(program)
        simplify(program)
        assert "drop_restriding" in fired(program)
        assert "aten.as_strided.default" not in targets(program)


def test_strides_of_other_places_stay() -> None:
    """A square that is looked at across has its own shape, but not its own values."""
    program = simplified(lambda x: (x * 2).as_strided((3, 3), (1, 3)) + 1, torch.randn(3, 3))
    assert "aten.as_strided.default" in targets(program)


def test_view_to_own_shape_is_dropped() -> None:
    """A user would get layers in the network that do nothing."""
    program = simplified(lambda x: x.view(2, 3) * 2, torch.randn(2, 3))
    assert targets(program) == ["aten.mul.Tensor"]


def test_real_conversion_stays() -> None:
    """A conversion to another type has the same shape, and a user's outputs need its type."""
    program = simplified(lambda x: x.to(torch.float16) + 1, torch.randn(3))
    assert "aten._to_copy.default" in targets(program)


def test_permute_of_equal_extents_stays() -> None:
    """A square matrix has its own shape after a transposition, but not its own values."""
    program = simplified(lambda x: x.permute(1, 0) + 1, torch.randn(3, 3))
    assert "aten.permute.default" in targets(program)


def test_views_merge() -> None:
    """A user would get two reshapes where one will do."""
    program = simplified(lambda x: (x * 2).view(6).view(3, 2) + 1, torch.randn(2, 3))
    assert "merge_views" in fired(program)
    assert targets(program).count("aten.reshape.default") == 1


def test_view_behind_transposition_does_not_merge() -> None:
    """Views that mix axes around a transposition are not one view."""
    program = simplified(lambda x: (x * 2).t().reshape(6) + 1, torch.randn(2, 3))
    assert any("t.default" in target or "transpose" in target for target in targets(program))


def test_expand_to_symbolic_extent_stays() -> None:
    """Two extents that are equal in the example only must not be taken for one."""

    def repeat(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum(0)[:, None].expand(x.shape[1], y.shape[0]) * 2

    program = program_of(repeat, torch.ones(3, 4), torch.ones(4), dynamic=True)
    simplify(program)
    assert "aten.expand.default" in targets(program)
