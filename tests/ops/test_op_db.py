"""PyTorch's operator database through the pipeline: lowered and right, or in eager for a reason.

A wrong answer here is a wrong answer in somebody's model; an exception is a model that stops.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from tests.ops.harness import EAGER, LOWERED, RAISED, WRONG
from tests.ops.measure import measure
from tests.ops.page import PAGE
from tests.ops.record import is_recorded, recorded, type_name
from tests.ops.relevant import all_ops, dtypes_of, exclusion, relevant_ops

#: A few of each family, in all their types: what the default run looks at.
REPRESENTATIVE = (
    "add sub mul div.floor_rounding div.trunc_rounding remainder fmod pow maximum fmin clamp where "
    "eq ge logical_xor bitwise_not isnan signbit abs sign round.decimals_3 exp log1p expm1 erfc "
    "atan2 hypot copysign nan_to_num lerp addcmul nn.functional.gelu nn.functional.silu "
    "nn.functional.hardswish nn.functional.elu nn.functional.softplus nn.functional.prelu "
    "nn.functional.glu nn.functional.mish sum mean prod amax argmax max.reduction_with_dim all any "
    "var_mean.unbiased logsumexp linalg.vector_norm norm.inf cumsum cumprod cummax softmax "
    "log_softmax count_nonzero full_like arange eye linspace matmul addmm baddbmm "
    "nn.functional.linear nn.functional.layer_norm nn.functional.conv2d nn.functional.embedding "
    "nn.functional.avg_pool2d nn.functional.scaled_dot_product_attention cat split permute "
    "reshape __getitem__ gather to"
).split()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)  # a fallback is what many of these are about
    yield
    logging.disable(logging.NOTSET)


def _check(name: str, dtype: torch.dtype) -> None:
    measured = measure(relevant_ops()[name], dtype)
    for place, outcome in enumerate(measured.outcomes):
        what = f"sample {place} of {name} in {type_name(dtype)}"
        assert outcome.state not in (WRONG, RAISED), f"{what} is {outcome.state}: {outcome.reason}"
        assert outcome.state == LOWERED or outcome.reason, f"{what} is in eager without a reason"
    if is_recorded(name, dtype):
        assert measured.state == LOWERED, (
            f"{name} in {type_name(dtype)} was lowered and is {measured.state} now: "
            f"{measured.reason}. If that is meant, run python -m tests.ops.page"
        )


def _cases(names: list[str]) -> list[object]:
    return [
        pytest.param(name, dtype, id=f"{name}-{type_name(dtype)}")
        for name in names
        for dtype in dtypes_of(relevant_ops()[name])
    ]


@pytest.mark.parametrize(("name", "dtype"), _cases(list(REPRESENTATIVE)))
def test_representative_op(name: str, dtype: torch.dtype) -> None:
    _check(name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), _cases(sorted(relevant_ops())))
def test_op(name: str, dtype: torch.dtype) -> None:
    _check(name, dtype)


def test_most_of_the_inference_operators_are_lowered() -> None:
    """A user whose model uses an ordinary op should not meet a graph break."""
    names = [name for name, op in relevant_ops().items() if torch.float32 in dtypes_of(op)]
    lowered = recorded()["float32"]
    assert len(lowered & set(names)) >= 0.85 * len(names)


def test_the_page_tells_of_every_operator() -> None:
    """Somebody who looks an operator up must find it, or the reason why it does not count."""
    page = PAGE.read_text()
    missing = [name for name in all_ops() if f"`{name}`" not in page]
    assert not missing


def test_the_page_agrees_with_the_record() -> None:
    """The page is what people read, the record what tests hold: they must not drift apart."""
    page = PAGE.read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    lowered = {row[0].strip("| `") for row in rows if row[1] == LOWERED}
    assert lowered == recorded()["float32"]


def test_only_whole_families_are_left_out() -> None:
    """The share of lowered ops means nothing if hard ops can be left out one by one."""
    reasons = {exclusion(op) for op in all_ops().values()} - {None}
    assert len(reasons) <= 9
    assert EAGER in PAGE.read_text()
