"""PyTorch's attention ops for its devices mean what they mean there, or stay in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from singlecard.capture.aot import capture
from singlecard.capture.ops import FUSED_ATTENTION
from singlecard.capture.program import Program
from singlecard.lowering.table import refusal
from singlecard.passes import simplify
from tests.graphs import fired, program_of
from tests.lowering.check import check, refuse
from tests.ops.harness import LOWERED, graph_of_call, run_call

aten = torch.ops.aten
Q, K, V = torch.randn(2, 4, 5, 16), torch.randn(2, 4, 7, 16), torch.randn(2, 4, 7, 16)
FEW = torch.randn(2, 2, 7, 16)
BIAS, WIDE_BIAS = torch.randn(5, 7), torch.randn(2, 4, 5, 7)
ON_CPU = aten._scaled_dot_product_flash_attention_for_cpu
MATH = aten._scaled_dot_product_attention_math


def expected(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[torch.Tensor]:
    """Attention written out, with heads of keys and values shared where there are fewer."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if is_causal:
        order = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~order, -torch.inf)
    return (torch.softmax(scores, -1) @ v,)


def call(op: Any, *args: Any, like: Callable[..., Any], **kwargs: Any) -> Any:
    return pytest.param(
        op.default, args, kwargs, like, id=f"{op.__name__}-{len(args)}-{','.join(kwargs)}"
    )


FLASH = aten._scaled_dot_product_flash_attention
EFFICIENT = aten._scaled_dot_product_efficient_attention
CUDNN = aten._scaled_dot_product_cudnn_attention
OTHER = aten._scaled_dot_product_fused_attention_overrideable
SQUARE = Q, K[:, :, :5], V[:, :, :5]


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "like"),
    [
        call(ON_CPU, Q, K, V, like=lambda q, k, v: expected(q, k, v)),
        call(ON_CPU, Q, K, V, 0.0, True, like=lambda q, k, v, *_: expected(q, k, v, None, True)),
        call(
            ON_CPU,
            Q,
            K,
            V,
            0.0,
            True,
            attn_mask=BIAS,
            scale=0.3,
            like=lambda q, k, v, *_, attn_mask, scale: expected(q, k, v, attn_mask, True, scale),
        ),
        call(ON_CPU, Q, FEW, FEW, like=lambda q, k, v: expected(q, k, v)),
        call(
            MATH, Q, K, V, None, 0.0, True, like=lambda q, k, v, *_: expected(q, k, v, None, True)
        ),
        call(
            MATH,
            Q,
            FEW,
            FEW,
            BIAS,
            enable_gqa=True,
            like=lambda q, k, v, b, enable_gqa: expected(q, k, v, b),
        ),
        call(FLASH, *SQUARE, 0.0, True, like=lambda q, k, v, *_: expected(q, k, v, None, True)),
        call(FLASH, Q, K, V, 0.0, False, True, like=lambda q, k, v, *_: expected(q, k, v)),
        call(EFFICIENT, Q, K, V, BIAS, False, like=lambda q, k, v, b, *_: expected(q, k, v, b)),
        call(
            EFFICIENT,
            Q,
            K,
            V,
            WIDE_BIAS,
            True,
            0.0,
            True,
            scale=2.0,
            like=lambda q, k, v, b, *_, scale: expected(q, k, v, b, True, scale),
        ),
        call(
            CUDNN,
            *SQUARE,
            BIAS[:, :5],
            True,
            0.0,
            True,
            False,
            scale=0.5,
            like=lambda q, k, v, b, *_, scale: expected(q, k, v, b, True, scale),
        ),
        call(
            OTHER,
            *SQUARE,
            BIAS[:, :5],
            0.0,
            True,
            like=lambda q, k, v, b, *_: expected(q, k, v, b, True),
        ),
        call(OTHER, Q, K, V, scale=0.1, like=lambda q, k, v, scale: expected(q, k, v, scale=scale)),
    ],
)
def test_what_each_op_means(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: Callable[..., Any]
) -> None:
    """Of a bias and causal order together one was dropped; a kernel's other switches count too."""
    outcome = run_call(lambda *a, **k: (op(*a, **k)[0],), args, kwargs, build=False, like=like)
    assert outcome.state == LOWERED, outcome.reason


def test_every_op_is_tried() -> None:
    """An op that is added to the list without a test above could mean something else."""
    tried = {ON_CPU, MATH, FLASH, EFFICIENT, CUDNN, OTHER}
    assert {op.default for op in tried} == set(FUSED_ATTENTION)


def test_a_bias_and_causal_order_are_one_mask() -> None:
    """Built and not only evaluated: the select between sum and softmax is in the engine."""
    check(lambda q, k, v, b: ON_CPU(q, k, v, 0.0, True, attn_mask=b)[0], Q, K, V, BIAS, build=True)


def test_rules_on_biases_see_attention_by_every_name() -> None:
    """A model under autocast has PyTorch's op, and would keep three biases in every layer."""

    def model(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.nn.functional.linear(x, w, b).view(2, 5, 4, 16).transpose(1, 2) for _ in range(3)
        )
        return ON_CPU(q, k, v)[0]

    weight, bias = torch.nn.Parameter(torch.randn(64, 64)), torch.nn.Parameter(torch.randn(64))
    program = simplify(program_of(lambda x: model(x, weight, bias), torch.randn(2, 5, 64)))
    assert {"name_attention", "drop_key_bias", "move_query_bias"} <= fired(program)


def test_read_statistics_stay_in_pytorch() -> None:
    """Engines do not have them: training code that reads them must still work."""
    reason = refuse(lambda *x: ON_CPU(*x), Q, K, V)
    assert "only the attention of its results" in reason and "[1]" in reason


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda q, k, v: FLASH(q, k, v, 0.0, True)[0], "5 queries and 7 keys"),
        (lambda q, k, v: CUDNN(q, k, v, None, False, 0.0, True)[0], "5 queries and 7 keys"),
        (lambda q, k, v: OTHER(q, k, v, None, 0.0, True)[0], "5 queries and 7 keys"),
        (lambda q, k, v: EFFICIENT(q, k, v, None, False, 0.5)[0], "dropout_p = 0.5"),
    ],
)
def test_what_a_card_alone_can_tell(function: Callable[..., Any], words: str) -> None:
    """Causal order is counted from the last key by some versions of a kernel: PyTorch decides."""
    found: list[Program] = []

    def keep(program: Program) -> Callable[..., Any]:
        found.append(program)
        return lambda args: pytest.fail("a CPU has no such kernel")

    module, tensors, _ = graph_of_call(function, (Q, K, V), {})
    capture(module, tensors, keep)  # type: ignore[arg-type]
    (program,) = found
    reasons = [refusal(node) for node in simplify(program).calls()]
    assert any(words in reason for reason in reasons if reason)
