"""What goes into a model and comes out of it: aliases, containers, numbers, control flow."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from tests.backend.harness import Watched, equal


class Pair(collections.namedtuple("Pair", "first rest")):
    """A named tuple that a model returns."""


def containers(x: torch.Tensor, n: int, name: str) -> Any:
    ordered = collections.OrderedDict(z=x * 2, a=None)
    return Pair(x - 1, None), ordered, [name, n], x.shape, x.dtype, x.device, {1: (x + 1,)}


def test_model_output() -> None:
    """Callers of transformers use attributes, and the class's own indexing."""

    def model(x: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=x * 2, hidden_states=(x, x + 1))

    x = torch.randn(3)
    got = Watched(model)(x)
    assert type(got) is BaseModelOutput and got.attentions is None
    equal((got[0], got.hidden_states[1]), (x * 2, x + 1))
    assert got.hidden_states[0] is x


def test_containers() -> None:
    """A named tuple that comes back as a tuple breaks the caller's next line."""
    x = torch.randn(3)
    got, want = Watched(containers)(x, 2, "n"), containers(x, 2, "n")
    equal(got, want)
    assert [type(item) for item in got] == [type(item) for item in want]


class Holder(nn.Module):
    """Answers with its own weights and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("shift", torch.ones(4))
        self.plain = torch.ones(4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.weight, self.shift, self.plain, self.weight.view(2, 2), x + self.shift


def test_outputs_that_are_weights() -> None:
    """Code that ties or counts weights compares them by identity."""
    module = Holder()
    compiled, x = Watched(module), torch.randn(4)
    for _ in range(2):
        weight, shift, plain, view, answer = compiled(x)
        assert weight is module.weight and shift is module.shift and plain is module.plain
        assert view.data_ptr() == module.weight.data_ptr()
        equal(answer, x + module.shift)


def written(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    u.add_(1)
    v.mul_(2)
    return u + v.sum()


PARTS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "overlapping rows": lambda base: (base[:4], base[2:]),
    "the same": lambda base: (base, base),
    "a tensor and its transpose": lambda base: (base.t()[:, :3], base[:3].t()),
    "every second column": lambda base: (base[:, ::2], base[:, 1::2]),
    "all and a column": lambda base: (base, base[:, 1:2]),
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", PARTS)
def test_written_inputs_that_share_memory(name: str, dynamic: bool | None) -> None:
    """Two arguments that overlap are one memory: the second must see what the first was given."""
    ours = torch.randn(6, 6)
    theirs = ours.clone()
    compiled = Watched(written, dynamic)
    with torch.no_grad():
        for _ in range(2):
            equal(compiled(*PARTS[name](ours)), written(*PARTS[name](theirs)))
            equal(ours, theirs)


def test_written_inputs_keep_their_layout() -> None:
    """A channels-last activation changed in place is the same tensor, with the same strides."""
    x = torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last)
    want, strides = x.relu(), x.stride()
    got = Watched(lambda x: x.relu_())(x)
    assert got is x and x.stride() == strides
    equal(x, want)


def sized(x: torch.Tensor, n: int, factor: float, start: int) -> Any:
    return x[:n] * factor, n + x.shape[0], x.new_zeros(n), factor * 2, torch.arange(n) + start


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_sizes_and_numbers(dynamic: bool | None) -> None:
    """A number of the first call that is taken for a constant is wrong in the second."""
    compiled, x = Watched(sized, dynamic), torch.randn(4, 8)
    for n, factor, start in ((2, 1.5, 1), (3, 2.5, 2), (4, 0.5, 5), (1, 0.0, 0), (0, 1.0, 1)):
        equal(compiled(x, n, factor, start), sized(x, n, factor, start))


def by_values(x: torch.Tensor) -> Any:
    count = int((x > 0).sum().item())
    y = x * 2 if count > 10 else x - 1
    return y, [y[row] + 1 for row in range(count % 3)], x[x > 0]


@pytest.mark.parametrize("dynamic", [None, True])
def test_control_flow_by_values(dynamic: bool | None) -> None:
    """Which branch runs is known in the call only, and shapes follow from it."""
    compiled = Watched(by_values, dynamic)
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(4, 6)
        equal(compiled(x), by_values(x))
    assert compiled.lowered > 0


def test_one_module_called_several_times_in_a_graph() -> None:
    """A shared head at several sizes: each call has its own shapes, and the weights are one's."""
    head = nn.Conv2d(3, 4, 3, padding=1).eval()

    def model(*levels: torch.Tensor) -> list[torch.Tensor]:
        return [head(level) for level in levels]

    levels = [torch.randn(1, 3, size, size) for size in (16, 8, 4)]
    compiled = Watched(model)
    for part in (levels, levels[1:], levels[:1], levels):
        with torch.no_grad():
            equal(compiled(*part), model(*part))
    assert compiled.reasons == []
