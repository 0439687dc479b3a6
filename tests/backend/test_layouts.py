"""Ops of others find memory as eager PyTorch lays it out, whatever was rewritten before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from singlecard import wait_for_builds
from singlecard.observe.counters import counters
from singlecard.report.measure import fresh_call

_found: list[tuple[int, ...]] = []


def _look(x: torch.Tensor) -> torch.Tensor:
    """Stand for a kernel that reads memory by its address: the answer is of strides too."""
    _found.append(x.stride())
    return torch.as_strided(x, (x.numel(),), (1,)).view(x.shape).clone() if _is_dense(x) else x * 1


def _is_dense(x: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    library = torch.library.Library("layouts", "FRAGMENT")
    library.define("look(Tensor x) -> Tensor")
    library.impl("look", _look, "CompositeExplicitAutograd")
    torch.library.register_fake("layouts::look", _like, lib=library)
    yield
    library._destroy()


def look(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.layouts.look(x)  # type: ignore[no-any-return]


def attended(x: torch.Tensor) -> torch.Tensor:
    heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2)


torch.manual_seed(0)
_linear = nn.Linear(16, 16).eval()
_convolution = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def image(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, 4, 4, 8)


MAKERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a transposition": lambda x: (x * 2).transpose(0, 1),
    "its copy": lambda x: (x * 2).transpose(0, 1).contiguous(),
    "a copy of an input": lambda x: x.transpose(0, 1).contiguous(),
    "an op behind a copy": lambda x: (x * 2).transpose(0, 1).contiguous().relu(),
    "an op behind a transposition": lambda x: (x * 2).permute(2, 0, 1).sigmoid(),
    "a broadcast": lambda x: x.sum(1, keepdim=True).expand(-1, 5, -1),
    "a slice": lambda x: (x * 2)[:, 1:5],
    "every other element": lambda x: (x * 2)[..., ::2],
    "windows": lambda x: (x * 2).unfold(2, 4, 2),
    "a linear layer": lambda x: _linear(x.transpose(0, 1)).transpose(1, 2),
    "attention": lambda x: attended(x),
    "a convolution": lambda x: _convolution(image(x).to(memory_format=torch.channels_last)),
    "a convolution of a contiguous image": lambda x: _convolution(image(x)),
    "joined parts": lambda x: torch.cat([x, x * 2], 2).transpose(1, 2),
    "an op that stays in PyTorch": lambda x: torch.special.bessel_j0((x * 2).transpose(0, 1)),
    "a neutral sum": lambda x: (x.transpose(0, 1) + 0) * 1,
    "heads": lambda x: (x * 2).unflatten(2, (4, 4)).transpose(1, 2),
}


@torch.no_grad()
def check(
    make: Callable[[torch.Tensor], torch.Tensor],
    dynamic: bool,
    evaluates: bool = True,
    **options: Any,
) -> None:
    """Compare answers, and what the op in the middle saw, with eager PyTorch."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return look(make(x)) * 2

    torch._dynamo.reset()
    given = {"execution": "reference", "min_block_size": 1, **options}
    compiled = torch.compile(
        fresh_call(model), backend="singlecard", options=given, dynamic=dynamic
    )
    before = counters().evaluations
    tolerance = 1e-2 if "precision" in options else 1e-4
    for batch in (4, 6) if dynamic else (4,):
        x = torch.randn(batch, 8, 16)
        for _ in range(2 if options.get("build") == "background" else 1):
            _found.clear()
            want = model(x)
            seen = list(_found)
            _found.clear()
            got = compiled(x)
            assert _found == seen
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            assert got.stride() == want.stride()
            wait_for_builds()
    assert (counters().evaluations > before) == evaluates  # doubling the answer is an engine's work


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "varying"])
@pytest.mark.parametrize("name", MAKERS)
def test_op_finds_eager_strides(name: str, dynamic: bool) -> None:
    """A kernel that reads by address would read other elements, and answer wrongly in silence."""
    check(MAKERS[name], dynamic)


MODES: dict[str, dict[str, Any]] = {
    "FP16": {"precision": "fp16"},
    "TorchInductor": {"fallback": "inductor"},
    "building behind answers": {"build": "background"},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["its copy", "a broadcast", "a slice", "an op behind a copy"])
def test_in_all_modes(mode: str, name: str) -> None:
    """Casts, other compilers and calls before the engine is there keep the promise too."""
    check(MAKERS[name], False, **MODES[mode])


@pytest.mark.parametrize("name", ["its copy", "an op behind a copy"])
def test_without_an_engine(name: str) -> None:
    """Rewrites are done before it is known that no engine is worth its call."""
    check(MAKERS[name], False, evaluates=False, min_block_size=None)


def test_equal_calls_on_other_layouts_stay_apart() -> None:
    """Once their copy is dropped they look like one call, and one of them would be wrong."""

    def both(x: torch.Tensor) -> torch.Tensor:
        rows = (x * 2).transpose(0, 1)
        return look(rows.contiguous().neg()) + look(rows.neg())

    check(both, False)


def test_constants_lie_as_they_did() -> None:
    """A weight that is turned round ahead of time lies otherwise than the view of it."""
    weight = nn.Parameter(torch.randn(8, 16))

    def turned(x: torch.Tensor) -> torch.Tensor:
        return look((weight * 2).t().contiguous().t()).sum() + x

    check(turned, False)


def test_input_that_lies_elsewhere_is_taken_as_it_is() -> None:
    """What the caller gives goes to the op itself, without a copy."""
    torch._dynamo.reset()
    compiled = torch.compile(
        fresh_call(lambda x: look(x) * 2),
        backend="singlecard",
        options={"execution": "reference", "min_block_size": 1},
    )
    x = torch.randn(4, 8).t()
    _found.clear()
    compiled(x)
    assert _found == [(1, 8)]
