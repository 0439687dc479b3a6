"""A value that stands in several places keeps its meaning in all of them, whatever rule fires.

Rules take what they change from its one user. A user that reads a value twice, an op that feeds the
program's output too, a weight of two layers: each was, or could be, a wrong answer in FP32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import singlecard
from singlecard.capture.program import Program
from tests.graphs import fired, simplified

WIDTH, HEADS, LENGTH = 32, 4, 9


def heads(x: torch.Tensor, count: int = HEADS) -> torch.Tensor:
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def merge(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(*operands: Any, **options: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(*operands, **options)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Model(nn.Module):
    """Layers to write cases with; all their biases count."""

    def __init__(self, case: Callable[[Model, torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.few = nn.Linear(WIDTH, WIDTH // 2)
        self.two, self.three = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.square = nn.Linear(LENGTH, LENGTH)
        self.conv, self.norm = nn.Conv1d(LENGTH, LENGTH, 3, padding=1), nn.BatchNorm1d(LENGTH)
        self.norm.running_mean = torch.randn(LENGTH)
        self.norm.running_var = torch.rand(LENGTH) + 0.5
        self.table = nn.Embedding(11, WIDTH)
        self.register_buffer("angles", torch.rand(LENGTH, WIDTH // HEADS))
        self.register_buffer("codes", torch.randint(-100, 100, (WIDTH, WIDTH), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(WIDTH, 1) / 100)
        self.mask = nn.Parameter(torch.randn(LENGTH, LENGTH))
        self.vector, self.eight = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(8))
        self.case = case

    def forward(self, x: torch.Tensor) -> Any:
        return self.case(self, x)


CASES: list[Callable[[Model, torch.Tensor], Any]] = []


def case(function: Callable[[Model, torch.Tensor], Any]) -> Callable[[Model, torch.Tensor], Any]:
    CASES.append(function)
    return function


@case
def keys_are_values(m: Model, x: torch.Tensor) -> Any:
    kv = heads(m.b(x))
    return attend(heads(m.a(x)), kv, kv)


@case
def keys_are_values_projected(m: Model, x: torch.Tensor) -> Any:
    kv = heads(m.b(x))
    return m.out(merge(attend(heads(m.a(x)), kv, kv)))


@case
def queries_are_keys(m: Model, x: torch.Tensor) -> Any:
    qk = heads(m.a(x))
    return m.out(merge(attend(qk, qk, heads(m.b(x)))))


@case
def queries_are_values(m: Model, x: torch.Tensor) -> Any:
    qv = heads(m.a(x))
    return m.out(merge(attend(qv, heads(m.b(x)), qv)))


@case
def all_are_one(m: Model, x: torch.Tensor) -> Any:
    one = heads(m.a(x))
    return m.out(merge(attend(one, one, one)))


@case
def one_view_seen_twice(m: Model, x: torch.Tensor) -> Any:
    view = m.b(x).view(*x.shape[:2], HEADS, -1)
    return attend(heads(m.a(x)), view.transpose(1, 2), view.transpose(1, 2))


@case
def one_projection_seen_twice(m: Model, x: torch.Tensor) -> Any:
    kv = m.b(x)
    return m.out(merge(attend(heads(m.a(x)), heads(kv), heads(kv))))


@case
def one_layer_called_twice(m: Model, x: torch.Tensor) -> Any:
    return m.out(merge(attend(heads(m.a(x)), heads(m.b(x)), heads(m.b(x)))))


@case
def the_mask_is_the_key(m: Model, x: torch.Tensor) -> Any:
    key = heads(m.square(x[..., :LENGTH].mT.mT), 1)
    return attend(key + 1, key, heads(m.a(x)[..., :LENGTH], 1), key)


@case
def groups_are_keys_and_values(m: Model, x: torch.Tensor) -> Any:
    kv = heads(m.few(x), 2)
    kv = kv[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], HEADS, LENGTH, -1)
    return m.out(merge(attend(heads(m.a(x)), kv, kv)))


@case
def a_part_taken_twice(m: Model, x: torch.Tensor) -> Any:
    q, kv = m.two(x).split(WIDTH, -1)
    return m.out(merge(attend(heads(q), heads(kv), heads(kv))))


@case
def parts_under_one_name(m: Model, x: torch.Tensor) -> Any:
    q, k, v = m.three(x).split(WIDTH, -1)
    return m.out(merge(attend(heads(q), heads(k), heads(v)))), k


@case
def keys_are_a_result(m: Model, x: torch.Tensor) -> Any:
    k = m.b(x)
    return attend(heads(m.a(x)), heads(k), heads(m.a(x))), k


@case
def attention_is_a_result(m: Model, x: torch.Tensor) -> Any:
    attended = attend(heads(m.a(x)), heads(m.b(x)), heads(m.few(x), 2).repeat(1, 2, 1, 1))
    return attended, m.out(merge(attended))


@case
def attention_projected_and_added(m: Model, x: torch.Tensor) -> Any:
    merged = merge(attend(heads(m.a(x)), heads(m.b(x)), heads(m.a(x + 1))))
    return F.linear(merged, m.out.weight, m.out.bias) + merged


@case
def product_with_itself(m: Model, x: torch.Tensor) -> Any:
    y = m.a(x)[0]
    return y @ y.t(), torch.mm(y, y.t()), torch.addmm(m.square.bias, y, y.t())


@case
def weight_of_two_layers(m: Model, x: torch.Tensor) -> Any:
    return F.linear(F.linear(x, m.a.weight, m.a.bias), m.a.weight, m.a.bias)


@case
def bias_of_two_layers(m: Model, x: torch.Tensor) -> Any:
    k, v = F.linear(x, m.a.weight, m.vector), F.linear(x, m.b.weight, m.vector)
    return m.out(merge(attend(heads(k + m.vector), heads(k), heads(v)))) * m.vector


@case
def weight_that_is_its_bias(m: Model, x: torch.Tensor) -> Any:
    return (F.layer_norm(x, (WIDTH,), m.vector, m.vector) + m.vector) * m.vector


@case
def table_that_is_a_weight(m: Model, x: torch.Tensor) -> Any:
    found = m.table(torch.tensor([1, 3, 3]))
    return F.linear(x, m.table.weight), found, F.linear(found, m.table.weight)


@case
def convolution_normed_twice(m: Model, x: torch.Tensor) -> Any:
    y = m.conv(x)
    return m.norm(y), m.norm(y) * y, m.norm(m.conv(x) + 0)


@case
def normed_and_returned(m: Model, x: torch.Tensor) -> Any:
    y = m.conv(x)
    return m.norm(y), y


@case
def convolution_of_a_result(m: Model, x: torch.Tensor) -> Any:
    convolved = F.conv1d(x, m.conv.weight, m.conv.bias, padding=1)
    return convolved + m.norm(m.conv(x)), m.norm(x)


@case
def mean_square_of_several(m: Model, x: torch.Tensor) -> Any:
    square = x * x
    factor = torch.rsqrt(square.mean(-1, keepdim=True) + 1e-5)
    return x * factor, square * factor, factor * factor, factor * 2.0


@case
def turned_by_one_angle(m: Model, x: torch.Tensor) -> Any:
    q = heads(x)
    return turn(q, m.angles, m.angles), turn(q, m.angles[None, None], m.angles[None, None])


@case
def turned_by_itself(m: Model, x: torch.Tensor) -> Any:
    q = heads(x)
    return turn(q, q, q), turn(q, q, q) @ turn(q, q, q).mT


@case
def queries_turned_as_keys(m: Model, x: torch.Tensor) -> Any:
    q, angles = heads(m.a(x)), m.angles[None, None]
    turned = turn(q, angles.cos(), angles.sin())
    return attend(turned, turned, q), attend(turned, turn(q, angles.cos(), angles.sin()), turned)


@case
def keys_turned_for_several_samples(m: Model, x: torch.Tensor) -> Any:
    angles = torch.stack([m.angles, m.angles + 1])[:, None]
    return turn(heads(x)[:1], angles, angles), turn(heads(x), angles, angles)


@case
def twice_in_a_list(m: Model, x: torch.Tensor) -> Any:
    y = m.a(x)
    return torch.cat([y, y], 1), torch.stack([y, y, x]), torch.where(y > 0, y, y)


@case
def sums_and_products_with_itself(m: Model, x: torch.Tensor) -> Any:
    y = x.reshape(-1).view(x.shape)
    return y + y, y * y, y - y, y / (y * y + 1), torch.maximum(y, y.clone())


@case
def views_of_a_view(m: Model, x: torch.Tensor) -> Any:
    first = m.a(x).view(-1, 8)
    return first.view(-1, 4), first + m.eight, first.view(2, -1), first


@case
def flattened_and_used_before(m: Model, x: torch.Tensor) -> Any:
    flat = x.reshape(-1, WIDTH)
    product = torch.addmm(m.vector, flat, m.a.weight.t())
    return product.view(x.shape), product, flat + 1


@case
def codes_of_two_products(m: Model, x: torch.Tensor) -> Any:
    weight = m.codes.float() * m.scale
    return F.linear(x, weight), x @ weight, weight, F.linear(x, weight, m.vector)


@case
def codes_times_themselves(m: Model, x: torch.Tensor) -> Any:
    weight = m.codes.float() * m.scale
    return weight @ weight.t(), torch.mm(weight, weight)


@case
def scaled_codes_used_before(m: Model, x: torch.Tensor) -> Any:
    product = x[0] @ m.codes.float().t()
    return product * m.scale.flatten(), product * product


class All(nn.Module):
    """All cases in one program, for a capture takes longer than they do."""

    def __init__(self, cases: list[Callable[..., Any]]) -> None:
        super().__init__()
        self.cases = nn.ModuleDict({case.__name__: Model(case) for case in cases})

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {name: case(x) for name, case in self.cases.items()}


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-4, msg=name)


def test_engines_keep_the_answers() -> None:
    """What is proved of graphs in float64 holds for the networks that are built, in FP32."""
    x, model = torch.randn(2, LENGTH, WIDTH), All(CASES).eval()
    report = singlecard.verify(model, (x,))
    assert report.engines == 1 and not report.fallback
    assert_same(report.outputs, report.expected)


def test_compiled_models_keep_the_answers() -> None:
    """What a user calls is what was verified."""
    x, model = torch.randn(2, LENGTH, WIDTH), All(CASES[:5]).eval()
    options = {"execution": "reference", "targets": "sm89"}
    with torch.no_grad():
        compiled = torch.compile(model, backend="singlecard", options=options)
        assert_same(compiled(x), model(x))


def test_an_input_that_is_written_between_its_uses() -> None:
    """Values from before the change and from behind it stay apart."""

    def written(m: Model, x: torch.Tensor) -> Any:
        before = x * 2
        x.add_(1)
        return attend(heads(m.b(x)), heads(m.b(x)), heads(before)), x.clone()

    model, x = Model(written).eval(), torch.randn(2, LENGTH, WIDTH)
    options = {"execution": "reference", "targets": "sm89"}
    compiled = torch.compile(model, backend="singlecard", options=options)
    ours, theirs = x.clone(), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(compiled(ours), model(theirs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, theirs)


def names(case: Callable[..., Any]) -> set[str]:
    program: Program = simplified(Model(case).eval(), torch.randn(2, LENGTH, WIDTH))
    return fired(program)


def test_a_shared_projection_keeps_its_bias() -> None:
    """As the values have it, the keys may not lose it."""
    moves = {"drop_key_bias", "move_value_bias", "move_rest_of_value_bias"}
    assert not names(keys_are_values_projected) & moves
    assert "move_query_bias" in names(keys_are_values_projected)
    assert not names(all_are_one) & (moves | {"move_query_bias"})
