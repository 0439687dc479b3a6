"""Settings reach the builder, and do what is said of them."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import torch

from singlecard.engine.plan_report import PlanReport, read_plan_log
from singlecard.errors import OptionError
from singlecard.network.building import BuildSettings, build_plan
from singlecard.network.net import Net
from singlecard.options import Options
from singlecard.session import Session


def built(settings: BuildSettings, size: int = 256) -> tuple[bytes, PlanReport]:
    net = Net()
    weights = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).half()
    x = net.input("x", torch.float16, (8, size))
    y = net.matmul(net.matmul(x, net.constant(weights)), net.constant(weights.flip(0)))
    net.mark_output(y, "y")
    file = io.BytesIO()
    messages = build_plan(net, {}, settings, file)
    return file.getvalue(), read_plan_log(messages, file.tell())


def test_weight_streaming_reaches_the_plan() -> None:
    """Without the flag an engine refuses every budget, on the card, after the build."""
    plain, _ = built(BuildSettings(("sm89",)))
    streamed, _ = built(BuildSettings(("sm89",), weight_streaming=True))
    assert streamed != plain
    assert built(BuildSettings(("sm89",), weight_streaming=True))[0] == streamed


@pytest.mark.parametrize("targets", [(), ("sm89",), ("sm75",)])
def test_weight_streaming_costs_nothing_in_the_plan(targets: tuple[str, ...]) -> None:
    """`singlecard plan` relies on it, and says so in docs/memory.md (tensorrt_rtx 1.7.1.116)."""
    _, plain = built(BuildSettings(targets))
    _, streamed = built(BuildSettings(targets, weight_streaming=True))
    assert streamed.weights_bytes == plain.weights_bytes
    assert streamed.scratch_bytes == plain.scratch_bytes
    assert streamed.engine_bytes == plain.engine_bytes
    assert streamed.kernels_by_kind == plain.kernels_by_kind


def test_weight_streaming_is_part_of_the_key() -> None:
    """A cached engine without the flag would be taken for one that can stream."""
    parts = [BuildSettings(weight_streaming=on).parts() for on in (False, True)]
    assert {name for name in parts[0] if parts[0][name] != parts[1][name]} == {"weight_streaming"}


def test_a_budget_asks_for_weight_streaming() -> None:
    """The option is what users have; the flag is what the builder has."""
    assert Session(Options.parse({"memory_budget": 0})).settings.weight_streaming
    assert Session(Options.parse({"memory_budget": "8GiB"})).settings.weight_streaming
    assert not Session(Options.parse({})).settings.weight_streaming


@pytest.mark.parametrize(("given", "size"), [("8GiB", 2**33), ("8GB", 8 * 10**9), (0, 0)])
def test_budgets_are_bytes_or_texts(given: Any, size: int) -> None:
    """Cards are sold in GiB: 7 percent more than in GB."""
    assert Options.parse({"memory_budget": given}).memory_budget == size


@pytest.mark.parametrize("value", ["", "GiB", "8GiBs", "-1GiB", "all", -1, 1.5, True, ["8GiB"]])
def test_other_budgets_are_refused(value: Any) -> None:
    """A budget that is misread is memory that another program had."""
    with pytest.raises(OptionError, match="memory_budget"):
        Options.parse({"memory_budget": value})


_GARBAGE = """
import faulthandler, gc
faulthandler.dump_traceback_later(30, exit=True)
gc.set_threshold(10**9)
from singlecard.network.logger import Messages
from singlecard.network.net import Net

class Holder:
    pass

def told(self, severity, text):  # while TensorRT makes the last builder
    gc.set_threshold(1)
    [[] for _ in range(100)]

holder = Holder()
holder.net, holder.self = Net(), holder
del holder
Messages.add = told
Net()
print("made")
"""


def test_a_builder_that_is_garbage_does_not_end_while_another_is_made() -> None:
    """TensorRT holds a lock while it tells its logger: the process would wait for itself."""
    done = subprocess.run([sys.executable, "-c", _GARBAGE], capture_output=True, text=True)
    assert done.stdout == "made\n", done.stderr


class _Interrupted(io.BytesIO):
    def write(self, data: Any) -> int:
        raise KeyboardInterrupt


def _interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["the file", "the progress", "the log"])
def test_ctrl_c_in_a_build_reaches_the_caller(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT swallows what its callbacks raise: it builds on, writes half a plan, or refuses."""
    net = Net()
    net.mark_output(net.unary("EXP", net.input("x", torch.float32, (4, 8))), "y")
    if where == "the log":
        monkeypatch.setattr(net.messages, "add", _interrupt)
    file = _Interrupted() if where == "the file" else io.BytesIO()
    progress = _interrupt if where == "the progress" else None
    with pytest.raises(KeyboardInterrupt):
        build_plan(net, {}, BuildSettings(("sm89",)), file, progress)
    monkeypatch.undo()
    assert build_plan(net, {}, BuildSettings(("sm89",)), io.BytesIO())
