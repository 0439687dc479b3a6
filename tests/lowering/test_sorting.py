"""Order, and places in an order."""

from __future__ import annotations

import pytest
import torch

from tests.lowering.check import check, refuse

_NAN, _INF = float("nan"), float("inf")


@pytest.mark.parametrize("largest", (True, False))
def test_topk(largest: bool) -> None:
    """Routers choose experts by it, detectors their candidates."""
    x = torch.randperm(60).view(3, 4, 5).float()
    check(lambda x: x.topk(3, -1, largest), x, build=True)
    check(lambda x: x.topk(2, 0, largest), x.long())
    check(lambda x: x.topk(1, 0, largest), torch.tensor(2.0))


def test_topk_beyond_the_layer_stays_in_pytorch() -> None:
    """TensorRT refuses a larger k: the engine would not build."""
    reason = refuse(lambda x: x.topk(3841), torch.randperm(4000).float())
    assert "k <= 3840" in reason and "3841" in reason


@pytest.mark.parametrize("descending", (True, False))
def test_sort(descending: bool) -> None:
    """Values and where they came from."""
    x = torch.randperm(60).view(3, 4, 5).float()
    check(lambda x: x.sort(1, descending), x, build=True)
    check(lambda x: x.argsort(-1, descending), x.int())


@pytest.mark.parametrize("descending", (True, False))
def test_stable_sort_keeps_the_order_of_equals(descending: bool) -> None:
    """Grouping tokens by expert relies on it; NaN belongs behind all numbers."""
    x = torch.tensor([[2.0, _NAN, 1.0, 2.0, _INF, _NAN, 1.0, -_INF]])
    check(lambda x: x.sort(stable=True, dim=-1, descending=descending), x, build=True)
    for x in (torch.randint(0, 3, (9, 2)), torch.rand(9, 2) > 0.5):
        check(lambda x: x.sort(stable=True, dim=0, descending=descending), x)


@pytest.mark.parametrize("descending", (True, False))
def test_long_axes_are_sorted_in_parts(descending: bool) -> None:
    """Ties, NaN, infinities and a last part that is not full: each could take another's place."""
    x = torch.randint(0, 900, (2, 5000)).float()
    x[0, 7::31], x[1, 5::17], x[:, 3::29] = _NAN, _INF, -_INF
    check(lambda x: x.sort(stable=True, dim=1, descending=descending), x, build=descending)
    check(lambda x: x.sort(0, descending)[0], torch.randint(-9, 9, (4500,)))
    check(lambda x: x.sort(0, descending)[0], torch.rand(4500) > 0.5)


def test_very_long_axes_stay_in_pytorch() -> None:
    """Comparisons of each part with each would not fit into memory."""
    reason = refuse(lambda x: x.sort()[0], torch.randperm(70000).float())
    assert "<= 3840" in reason and "70000" in reason


def test_single_places_of_an_order() -> None:
    """Medians and quantiles normalize; the lower of two middles counts."""
    x = torch.randperm(24).view(4, 6).float()
    check(lambda x: (x.median(), x.median(-1, True), x.kthvalue(2, 0)), x, build=True)
    check(lambda x: x.quantile(torch.tensor([0.1, 0.6]), -1), x)


@pytest.mark.parametrize("right", (True, False))
def test_places_in_an_order(right: bool) -> None:
    """Relative positions are put into buckets by it."""
    row = torch.tensor([-1.0, 0.0, 0.0, 2.0])
    values = torch.tensor([[0.0, 5.0, -3.0], [_NAN, 2.0, 0.5]])
    check(lambda r, v: torch.searchsorted(r, v, right=right), row, values, build=True)
    check(lambda r, v: torch.bucketize(v, r, right=right, out_int32=True), row, values)
    check(lambda r, v: torch.searchsorted(r.expand(2, 4).contiguous(), v), row, values)


def test_histogram() -> None:
    """Tokens per expert are counted with it; what lies outside does not count."""
    x = torch.tensor([0.0, 3.0, 3.0, 1.0, -1.0, 7.0, 4.0, 2.5])
    check(lambda x: torch.histc(x, 4, 0, 4), x, build=True)
    check(lambda x: (torch.histc(x, 4), torch.histc(x * 0 + 3, 4)), x)  # the range of the data


_HOLES = torch.tensor(
    [[3.0, _NAN, 1.0, 2.0], [4.0, 1.0, 2.0, 0.0], [_NAN, _INF, _NAN, 1.0], [_NAN] * 4]
)


def test_median_of_what_holds_nan() -> None:
    """A gap in the data must show in the answer, with the place of the first one."""
    check(lambda x: (x.median(1), x.median(0, True), x.median()), _HOLES, build=True)
    check(lambda x: (x.median(-1), x.median()), _HOLES[1:2].half())
    check(lambda x: (x[0].median(), x[1].median(0)), _HOLES[0])


def test_median_of_the_numbers_alone() -> None:
    """What gaps are skipped by: the middle moves with each row's count of numbers."""
    check(lambda x: (x.nanmedian(1).values, x.nanmedian(0, True).values), _HOLES, build=True)
    check(lambda x: (x[:3].nanmedian(-1).indices, x.nanmedian(), x[3].nanmedian()), _HOLES)
    check(lambda x: x.nanmedian(0), torch.randperm(12).view(4, 3))
