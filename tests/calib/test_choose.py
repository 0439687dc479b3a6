"""What is chosen from what was seen: it must help, or be left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import singlecard
from singlecard_calib.choose import divisors, method_from, rounded, smoothed
from singlecard_calib.collect import Collecting
from singlecard_calib.methods import min_max
from singlecard_calib.observations import SAMPLED, Seen
from singlecard_calib.observe import Observer


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outlying() -> tuple[Tensor, Tensor]:
    """Rows with one channel a hundred times as large as the others, and their weight."""
    rows = random(256, 32)
    rows[:, 3] *= 100
    return rows, random(16, 32, seed=1)


def seen(rows: Tensor) -> Seen:
    item = Seen()
    item.add("x", rows, "linear", SAMPLED)
    return item


def point(weight: Tensor) -> object:
    session = Collecting(None, 1)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).eval()
    layer.weight.data = weight
    with torch.no_grad():
        torch.compile(layer, backend=session.backend)(torch.ones(2, weight.shape[1]))
    return session.seen.points["model:linear"]


def test_smoothing_takes_error_away() -> None:
    """One large channel costs all others their digits: that is what smoothing is for."""
    rows, weight = outlying()
    divisor, threshold = smoothed(seen(rows), [point(weight)], min_max, 0.5, "int8")
    assert divisor is not None
    exact = F.linear(rows, weight)
    plain = F.linear(rounded(rows, float(rows.abs().max())), weight)
    better = F.linear(rounded(rows / divisor, threshold), weight * divisor)
    assert (better - exact).norm() < 0.25 * (plain - exact).norm()


def test_smoothing_that_helps_nothing_is_left_out() -> None:
    """A divisor is a kernel more."""
    rows = torch.ones(64, 32)
    layer = [point(random(16, 32).sign())]
    divisor, threshold = smoothed(seen(rows), layer, min_max, "search", "int8")
    assert divisor is None and threshold == 1.0


def test_a_divided_tensors_range_is_that_of_all_calls() -> None:
    """Samples are a part of the rows: min-max of a part cuts off what it says it does not."""
    rows, weight = outlying()
    item = Seen()
    for part in rows.split(32):
        item.add("x", part, "linear", 2 * 32)  # two rows of each
    divisor, threshold = smoothed(item, [point(weight)], min_max, 0.5, "int8")
    assert item.sample is not None and len(item.sample) == 16 and divisor is not None
    assert float((rows / divisor).abs().max()) <= threshold * (1 + 1e-6)
    assert threshold < 1.5 * float((rows / divisor).abs().max())


def test_divisors_are_those_of_the_paper() -> None:
    """Largest activation ** s / largest weight ** (1 - s), but for a common factor."""
    channels, weights = torch.tensor([8.0, 2.0, 0.0]), torch.tensor([[1.0, -4.0, 3.0]])
    found = divisors(channels, [weights], 0.5)
    assert float(found[0] / found[1]) == pytest.approx(8**0.5 / (2**0.5 / 4**0.5))
    assert found.isfinite().all() and (found > 0).all()


def test_several_readers_share_one_divisor() -> None:
    """Query, key and value read one tensor: with two divisors it is divided twice."""

    class Readers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 8), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    rows, _ = outlying()
    table = singlecard.calibrate(Readers().eval(), [rows, rows], smoothing=0.5)
    (scale,) = table.tensors.values()
    assert len(scale.divisor) == 32


def test_tensors_with_other_readers_are_not_divided() -> None:
    """A product has no weight that could take the range, and would be wrong by the divisor."""

    class Readers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.a(x)[:32]

    rows, _ = outlying()
    table = singlecard.calibrate(Readers().eval(), [rows, rows], smoothing=0.5)
    assert not any(scale.divisor for scale in table.tensors.values())


def test_the_share_of_a_percentile() -> None:
    """A share that is lost on the way cuts off something else than was asked for."""
    observer = Observer()
    observer.add(torch.linspace(0, 1, 1001))
    assert method_from("percentile", 50)(observer) == pytest.approx(0.5, abs=0.01)
    assert method_from("min-max", None)(observer) == 1.0


def test_samples_are_bounded() -> None:
    """A long calibration must not fill the memory."""
    item = Seen()
    for seed in range(5):
        item.add("x", random(1 << 11, 1 << 7, seed=seed), "linear", 1 << 17)
    assert item.sample is not None
    assert SAMPLED // 2 <= item.sample.numel() == item.sampled <= SAMPLED
