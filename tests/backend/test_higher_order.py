"""Ops on graphs and custom ops that write: a graph is cut around them, regions are seen through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import InvokeQuant
from torch._higher_order_ops import print as print_in_graph
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.foreach_map import foreach_map
from torch._higher_order_ops.hints_wrap import hints_wrapper
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.out_dtype import out_dtype
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.strict_mode import strict_mode
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

import singlecard
from tests.backend.harness import Watched, equal

X = torch.linspace(-1, 1, 32).reshape(4, 8)


@pytest.fixture(autouse=True)
def custom_ops() -> Iterator[None]:
    """Ops of a library that write to what they are given."""
    with torch.library._scoped_library("singlecard_test", "FRAGMENT") as library:
        library.define("double_(Tensor(a!) x) -> ()")
        library.impl("double_", _double, "CPU")
        library.impl("double_", lambda x: None, "Meta")
        library.define("swap_(Tensor(a!) x, Tensor(b!) y) -> Tensor")
        library.impl("swap_", _swap, "CPU")
        library.impl("swap_", lambda x, y: torch.empty_like(x), "Meta")
        yield


def _double(x: Tensor) -> None:
    x.mul_(2)


def _swap(x: Tensor, y: Tensor) -> Tensor:
    before = x.clone()
    x.copy_(y)
    y.copy_(before)
    return x - y


def ops() -> Any:
    return torch.ops.singlecard_test


class Model(nn.Module):
    """Layers around something; what it is given comes from an engine and goes into one."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.middle = middle

    def forward(self, x: Tensor) -> Any:
        result = self.middle(self.inner, self.first(x))
        first = result[0] if isinstance(result, (tuple, list)) else result
        return self.last(first), result


def written(inner: nn.Module, x: Tensor) -> Any:
    ops().double_(x)
    return x + 1


def written_view(inner: nn.Module, x: Tensor) -> Any:
    ops().double_(x[1:3])
    return x, x[1]


def two_written(inner: nn.Module, x: Tensor) -> Any:
    y = inner(x)
    z = ops().swap_(x, y)
    return x, y, z


def attention(inner: nn.Module, x: Tensor) -> Any:
    heads = inner(x)[None, None]
    return flex_attention(heads, heads, heads, lambda score, b, h, i, j: score + (i - j))[0, 0]


def scanned(inner: nn.Module, x: Tensor) -> Any:
    return scan(lambda carry, row: (carry + row, inner(carry) * row), torch.zeros(8), x)[1]


def looped(inner: nn.Module, x: Tensor) -> Any:
    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, inner(y)), (start, x))[1]


#: What the graph is cut around: one op stays, and engines stand on both sides.
CUT: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "a custom op that writes": (written, "singlecard_test.double_"),
    "a custom op that writes to a view": (written_view, "singlecard_test.double_"),
    "a custom op that writes to two": (two_written, "singlecard_test.swap_"),
    "cond": (
        lambda inner, x: torch.cond(x.sum() > 0, lambda y: inner(y), lambda y: y - 1, (x,)),
        "higher_order.cond",
    ),
    "while_loop": (looped, "higher_order.while_loop"),
    "scan": (scanned, "higher_order.scan"),
    "map": (lambda inner, x: map_rows(lambda y: inner(y).sin(), x), "higher_order.map_impl"),
    "flex_attention": (attention, "higher_order.flex_attention"),
}


@pytest.mark.parametrize("name", CUT)
def test_the_graph_is_cut_around_it(name: str) -> None:
    """One such op, and all of a model ran in PyTorch."""
    middle, op = CUT[name]
    model = Model(middle).eval()
    compiled = Watched(model)
    before = singlecard.counters()
    with torch.no_grad():
        for _ in range(2):
            equal(compiled(X), model(X))
    assert (singlecard.counters() - before).evaluations >= 4, "the layers around it are engines"
    (graph,) = compiled.session.graphs
    assert [item.op for item in graph.fallback] == [op]


def branches(inner: nn.Module, x: Tensor) -> Any:
    return checkpoint(
        lambda y: checkpoint(inner, y, use_reentrant=False) + 1, x, use_reentrant=False
    )


@torch.compiler.nested_compile_region
def gelu_twice(inner: nn.Module, x: Tensor) -> Tensor:
    return F.gelu(inner(F.gelu(x)))


def attends(inner: nn.Module, x: Tensor) -> Any:
    def attend(y: Tensor) -> Tensor:
        heads = inner(y).unflatten(-1, (2, 4)).transpose(0, 1)[None]
        return F.scaled_dot_product_attention(heads, heads, heads)[0].transpose(0, 1).flatten(1)

    return checkpoint(attend, x, use_reentrant=False)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def under_autocast(inner: nn.Module, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return inner(x).float()


def with_gradients(inner: nn.Module, x: Tensor) -> Any:
    with torch.enable_grad():
        y = inner(x)
    return y.detach()


#: What is seen through: nothing stays in PyTorch.
SEEN_THROUGH: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "checkpoint": branches,
    "attention in a checkpoint": attends,
    "a nested region, twice": lambda inner, x: gelu_twice(inner, gelu_twice(inner, x)),
    "strict_mode": lambda inner, x: strict_mode(lambda y: (inner(y),), (x,))[0],
    "hints_wrapper": lambda inner, x: hints_wrapper(lambda y: (inner(y),), (x,), {}, hints={})[0],
    "invoke_quant": lambda inner, x: InvokeQuant()(inner, x),
    "associative_scan": lambda inner, x: associative_scan(
        lambda a, b: a * b, inner(x), 0, combine_mode="generic"
    ),
    "autograd.Function": lambda inner, x: inner(Doubled.apply(x)),  # type: ignore[no-untyped-call]
    "autocast": under_autocast,
    "enable_grad": with_gradients,
    "vmap": lambda inner, x: torch.func.vmap(inner)(x),
}


@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_regions_are_seen_through(name: str) -> None:
    """A training script's checkpoints stay in the model when it is deployed."""
    model = Model(SEEN_THROUGH[name]).eval()
    compiled = Watched(model)
    before = singlecard.counters()
    equal(compiled(X), model(X), 1e-2 if name == "autocast" else 1e-5)
    assert (singlecard.counters() - before).evaluations == 1
    assert not compiled.reasons


def test_maps_over_lists_are_seen_through() -> None:
    """An exponential average of many weights; eager PyTorch 2.13 takes no plain function here."""
    compiled = Watched(lambda x: foreach_map(torch.add, [x, x.exp()], [x, x]))
    equal(list(compiled(X)), [X + X, X.exp() + X])
    assert not compiled.reasons


def test_a_region_is_captured_as_the_same_ops_without_it() -> None:
    """Attention that is taken apart in a checkpoint misses the kernels that it has outside."""
    ops = []
    for wrap in (False, True):
        torch._dynamo.reset()
        model = Model(attends if wrap else lambda inner, x: attends_plainly(inner, x)).eval()
        compiled = Watched(model)
        compiled(X)
        (graph,) = compiled.session.graphs
        assert graph.partition is not None
        ops.append(sorted(str(n.target) for s in graph.partition.segments for n in s.nodes))
    assert ops[0] == ops[1] and any("attention" in op for op in ops[0])


def attends_plainly(inner: nn.Module, x: Tensor) -> Any:
    heads = inner(x).unflatten(-1, (2, 4)).transpose(0, 1)[None]
    return F.scaled_dot_product_attention(heads, heads, heads)[0].transpose(0, 1).flatten(1)


def test_what_is_written_reaches_the_caller() -> None:
    """A cache that a custom op writes to answers the second token wrong."""

    def model(x: Tensor, cache: Tensor) -> Tensor:
        ops().double_(cache)
        return cache + x.exp()

    compiled = Watched(model)
    got, want = torch.ones(4, 8), torch.ones(4, 8)
    for _ in range(3):
        equal(compiled(X, got), model(X, want))
        equal(got, want)
    assert compiled.lowered == 2


def test_effects_happen_at_each_call(capsys: pytest.CaptureFixture[str]) -> None:
    """What a model prints on its way is why the line stands there."""
    layer = nn.Linear(8, 8).eval()

    def model(x: Tensor) -> Tensor:
        print_in_graph("at {}", 1)
        y = layer(x)
        print_in_graph("at {}", 2)
        return y

    compiled = Watched(model)
    compiled(X)
    capsys.readouterr()
    for _ in range(2):
        equal(compiled(X), layer(X))
    assert capsys.readouterr().out.split("\n")[:4] == ["at 1", "at 2"] * 2
    assert compiled.lowered == 1


def test_integer_products_of_another_type_stay() -> None:
    """`out_dtype` is no graph op, and stays alone all the same."""

    def model(x: Tensor) -> Tensor:
        codes = (x * 10).to(torch.int8)
        return out_dtype(torch.ops.aten.mm.default, torch.int32, codes, codes.T.contiguous())

    compiled = Watched(model)
    equal(compiled(X), model(X))
    assert any("higher_order.out_dtype" in reason for reason in compiled.reasons)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_keeps_its_types_in_lower_precision(precision: str) -> None:
    """A kernel that is compiled for FP32 would read FP16 as garbage."""
    model = Model(two_written).eval()
    report = singlecard.verify(
        model, (X,), options={"precision": precision, "min_block_size": 1, "targets": "sm89"}
    )
    assert report.engines >= 2 and report.mismatch is None and report.relative_l2 < 1e-2


def test_it_keeps_its_types_where_float64_is_demoted() -> None:
    """As above, for an op on float64 in a model that computes in FP32."""

    def model(x: Tensor) -> Tensor:
        y = x.double().exp()
        z = ops().swap_(y, y * 2)
        return z + y

    report = singlecard.verify(
        model, (X,), options={"demote_float64": True, "min_block_size": 1, "targets": "sm89"}
    )
    assert report.engines >= 1 and report.mismatch is None and report.relative_l2 < 1e-5


def test_two_starts_of_a_model_with_regions() -> None:
    """A recipe that knew a region by its name alone would run last week's."""
    for factor in (2.0, 3.0):
        torch._dynamo.reset()

        def model(x: Tensor, factor: float = factor) -> Tensor:
            return checkpoint(lambda y: y * factor, x.exp(), use_reentrant=False)  # type: ignore[no-any-return]

        call = torch.compile(
            model, backend="singlecard", options={"execution": "reference", "targets": "sm89"}
        )
        with torch.no_grad():
            equal(call(X), model(X))
