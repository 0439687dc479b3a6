"""Biases of attention's projections move only where the answers cannot tell."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graphs import fired, simplified, targets

MOVES = {"drop_key_bias", "move_query_bias", "move_value_bias"}


class Attention(nn.Module):
    """Multi-head attention as models write it; subclasses change one thing each."""

    def __init__(self, heads: int = 2, groups: int = 2, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.groups, self.width = heads, groups, width
        size = heads * width
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, groups * width)
        self.value = nn.Linear(size, groups * width)
        self.out = nn.Linear(size, size)
        self.after = nn.Linear(size, size)
        self.register_buffer("angles", torch.rand(5, width))

    def split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(*x.shape[:2], heads, self.width).transpose(1, 2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.groups)

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x)  # type: ignore[no-any-return]

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        return self.split(self.key(x), self.groups)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        return self.split(self.value(x), self.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.split(self.query(x), self.heads)
        return self.project(self.merge(self.attend(q, self.keys(x), self.values(x))))


X = torch.randn(2, 5, 8)


def moved(module: nn.Module, *args: torch.Tensor) -> set[str]:
    return fired(simplified(module.eval(), *(args or (X,)))) & MOVES


def test_all_three_move() -> None:
    """BERT costs two kernels a layer more without this."""
    assert moved(Attention()) == MOVES


def test_value_bias_of_groups_is_repeated() -> None:
    """With fewer value heads than query heads each bias serves a group, in the heads' order."""
    assert moved(Attention(heads=4, groups=2, width=2)) == MOVES


class Masked(Attention):
    """Attention under a mask with no empty row."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, self.mask)


@pytest.mark.parametrize(
    "mask", [torch.ones(5, 5).tril().bool(), torch.randn(5, 5), torch.eye(5).bool()]
)
def test_masks_change_nothing(mask: torch.Tensor) -> None:
    """The weights of a row sum to one under any mask that leaves it something."""
    assert moved(Masked(mask)) == MOVES


class Rotated(Attention):
    """A rotation between the key projection and attention, as RoPE."""

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        return super().keys(x) * self.angles


def test_key_bias_before_rotation_stays() -> None:
    """Rotated by position, the bias is no longer the same for all keys: Qwen would answer wrong."""
    assert "drop_key_bias" not in moved(Rotated())


class ExtraUse(Attention):
    """Keys and values are also written to a cache."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        q, k, v = self.split(self.query(x), self.heads), self.keys(x), self.values(x)
        return self.project(self.merge(self.attend(q, k, v))), k + 0.5, v + 0.5


def test_keys_and_values_used_elsewhere_keep_their_bias() -> None:
    """A cache filled with keys and values without bias breaks every later token."""
    assert moved(ExtraUse()) == {"move_query_bias"}


class Residual(Attention):
    """Attention's output is used beside the projection."""

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x) + x  # type: ignore[no-any-return]


class Activated(Attention):
    """Something that is not linear stands before the projection."""

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(x))  # type: ignore[no-any-return]


class Unprojected(Attention):
    """No projection at all."""

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class MixedMerge(Attention):
    """The heads are merged into other axes: positions and features get mixed."""

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[2], -1)


@pytest.mark.parametrize("kind", [Residual, Activated, Unprojected, MixedMerge])
def test_value_bias_stays_where_it_cannot_pass(kind: type[Attention]) -> None:
    """The bias goes through a projection only: anything else sees attention's output itself."""
    assert "move_value_bias" not in moved(kind())


class Untransposed(Attention):
    """GPT-2's projection: a weight as [in, out], its bias added behind, or none and more layers."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.biased = biased
        self.plain = nn.Parameter(torch.randn(8, 8))

    def project(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.view(-1, 8)
        if self.biased:
            return torch.addmm(self.out.bias, flat, self.plain).view(x.shape)
        return self.after(torch.mm(flat, self.plain).view(x.shape))  # type: ignore[no-any-return]


def test_projection_with_untransposed_weight() -> None:
    """GPT-2 keeps [in, out]; multiplied the wrong way the bias would be another vector."""
    assert moved(Untransposed(biased=True)) == MOVES


def test_projection_without_bias_before_another_layer() -> None:
    """The next layer's bias is not the projection's: that layer itself would be lost."""
    program = simplified(Untransposed(biased=False).eval(), X)
    assert "move_value_bias" not in fired(program)
    assert "aten.linear.default" in targets(program)


class Joined(Attention):
    """One projection for query, key and value, split behind it."""

    def __init__(self, axis: int = 2, times: int = 3) -> None:
        super().__init__()
        self.axis, self.times = axis, times
        self.joined = nn.Linear(8, 8 * times)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.joined(x).split(8 if self.axis == 2 else 1, dim=self.axis)
        q, k, v = (self.split(part, 2) for part in parts[:3])
        return self.project(self.merge(self.attend(q, k, v)))


def test_bias_goes_through_the_split() -> None:
    """GPT-2 joins its projections: without this none of their biases can move."""
    program = simplified(Joined().eval(), X)
    assert {"push_bias_through_split", *MOVES} <= fired(program)


def test_unused_part_of_a_split_keeps_the_bias_whole() -> None:
    """A part that nothing uses has no place to put its bias: all stay together."""
    assert "push_bias_through_split" not in fired(simplified(Joined(times=4).eval(), X))


def test_split_of_another_axis_keeps_its_bias() -> None:
    """Split along the batch, each part needs the whole bias."""

    class Batched(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.joined = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (self.split(part, 2) for part in self.joined(x).split(1, dim=0))
            return self.project(self.merge(self.attend(q, k, v)))

    assert "push_bias_through_split" not in fired(
        simplified(Batched().eval(), torch.randn(3, 5, 8))
    )


class Broadcast(Attention):
    """A bias that gives the keys their features: without it they have another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(8))

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        return self.split(x[..., :1] * 2 + self.vector, 2)


def test_bias_that_broadcasts_stays() -> None:
    """Adding a vector to one feature makes eight of it: dropped, the model would not run."""
    assert "drop_key_bias" not in moved(Broadcast())


class MaskFrom(Attention):
    """Attention under a mask: a constant one, or one that comes with the call."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        mask = torch.ones(5, 5, dtype=torch.bool).tril()
        if constant:
            self.register_buffer("mask", mask)
        else:
            self.mask = None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.split(self.query(x), self.heads), self.keys(x), self.values(x)
        chosen = self.mask if mask is None else mask
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, chosen)
        return self.project(self.merge(attended))


def test_value_bias_passes_under_a_mask_that_hides_no_row() -> None:
    """A causal mask that is a constant would cost a decoder one kernel in every layer."""
    assert "move_value_bias" in fired(simplified(MaskFrom(constant=True).eval(), X))


def test_value_bias_stays_under_a_mask_that_may_hide_a_row() -> None:
    """A row that sees nothing is zero; the bias of the values would come out of nothing."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask[0] = False
    names = fired(simplified(MaskFrom(constant=False).eval(), X, mask))
    assert "move_value_bias" not in names
    assert "move_rest_of_value_bias" in names
