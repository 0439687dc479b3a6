"""What full TensorRT built in minutes is kept, whatever its log says of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from singlecard.engine import build
from singlecard.engine.build import get_engine, trial_report
from singlecard.engine.cache import Cache
from singlecard.engine.cards import CARDS
from singlecard.engine.cost import cost_of
from singlecard.engine.plan_report import PlanReport
from singlecard.engine.roofline import roofline
from singlecard.errors import BuildError, CacheError
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings
from singlecard.network.net import Net
from tests.engine.stores import visible

SETTINGS = BuildSettings(("sm90",))

#: In the manner of public logs of TensorRT 10: no strides, types by other words, other kinds.
LISTED = (
    "Layers:\nName: conv + relu, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device,"
    " Dimensions: [1,3,8,8], Format/Datatype: Half }], Outputs: [ { Name: y, Location: Device, "
    "Dimensions: [1,8,8,8], Format/Datatype: Half }], ParameterType: Convolution, TacticName: t, "
    "StreamId: 0, Metadata: [conv]\n\nBindings:\nx\ny"
)
TOTALS = [
    ("INFO", "Total Activation Memory: 1024 bytes"),
    ("INFO", "Total Weights Memory: 432 bytes"),
]
LOGS: dict[str, tuple[list[tuple[str, str]], tuple[int | None, int | None]]] = {
    "nothing": ([], (None, None)),
    "totals": (TOTALS, (1024, 432)),
    "a list in other words": ([*TOTALS, ("VERBOSE", LISTED)], (1024, 432)),
    "a list alone": ([("VERBOSE", LISTED)], (None, None)),
    "a list cut off": ([("VERBOSE", LISTED[:90])], (None, None)),
    "totals in other words": ([("INFO", "Total Weights Memory: 4 MiB")], (None, None)),
}


def small() -> Lowered:
    net = Net()
    x = net.input("input_0", torch.float32, (4, 4))
    net.mark_output(net.matmul(x, net.constant(torch.full((4, 4), 2.0))), "output_0")
    return Lowered(net, (), (), {}, {}, {})


class Builder:
    """Stands for `build_plan` of full TensorRT, which needs a card."""

    def __init__(self, messages: list[tuple[str, str]]) -> None:
        self.messages = messages
        self.timings: list[Any] = []

    def __call__(
        self,
        net: Any,
        profiles: Any,
        settings: Any,
        file: Any,
        progress: Any = None,
        timings: Any = None,
    ) -> list[tuple[str, str]]:
        file.write(b"plan")
        self.timings.append(timings)
        return self.messages


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Builder:
    """Build as full TensorRT does, and read as its logs are read."""
    builder = Builder([])
    monkeypatch.setattr(build, "build_plan", builder)
    monkeypatch.setattr(build, "lists_kernels", lambda: False)
    monkeypatch.setattr(build, "measures_kernels", lambda: True)
    monkeypatch.setattr(build, "timing_file", lambda folder: folder)
    return builder


@pytest.mark.parametrize("log", LOGS)
def test_no_log_costs_the_engine(
    full: Builder, log: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that took minutes would be thrown away for a line that nobody needs to run it."""
    caplog.set_level(logging.INFO, "singlecard.build")
    full.messages, (scratch, weights) = LOGS[log]
    cache = Cache(tmp_path)
    report = get_engine(small(), SETTINGS, cache).report
    assert (report.scratch_bytes, report.weights_bytes) == (scratch, weights)
    assert (report.kernels, report.kernel_count, report.engine_bytes) == (None, None, 4)
    assert "unknown kernels" in caplog.messages[-1]
    again = get_engine(small(), SETTINGS, cache)  # through the manifest
    assert not again.built and again.report == report
    assert trial_report(small(), SETTINGS) == report


def test_what_follows_from_kernels_is_unknown(full: Builder) -> None:
    """Zero kernels that move zero bytes in zero seconds would win every comparison."""
    report = trial_report(small(), SETTINGS)
    assert report.bytes_moved is None and report.flops is None and report.floor_bytes is None
    assert report.kernels_by_kind is None and report.arithmetic_by_type is None
    assert report.resident_bytes is None and not report.is_dynamic
    assert all(roofline(report, card) is None for card in CARDS)
    assert cost_of([report], CARDS) is None
    assert PlanReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_tensorrt_for_rtx_stays_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new release that words its log anew would give plans without kernels, unseen."""
    monkeypatch.setattr(build, "build_plan", Builder([*TOTALS, ("VERBOSE", LISTED)]))
    cache = Cache(tmp_path)
    with pytest.raises(BuildError, match="form that singlecard does not know"):
        get_engine(small(), SETTINGS, cache)
    assert visible(cache) == set()


def test_builds_and_trials_share_the_timings_of_the_cache(full: Builder, tmp_path: Path) -> None:
    """A trial measures what the engine would measure again."""
    cache = Cache(tmp_path / "new")
    trial_report(small(), SETTINGS, cache)
    get_engine(small(), SETTINGS, cache)
    assert full.timings == [cache.engines] * 2
    trial_report(small(), SETTINGS)
    assert full.timings[-1] is None


def test_a_trial_goes_without_timings_where_there_is_no_folder(
    full: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a trial is stored: a cache that cannot be written is no reason to end it."""

    def refuses(cache: Cache) -> None:
        raise CacheError("it is not writable")

    monkeypatch.setattr(Cache, "open", refuses)
    assert trial_report(small(), SETTINGS, Cache(tmp_path)).engine_bytes == 4
    assert full.timings == [None]
