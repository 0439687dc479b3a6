"""What full TensorRT measured is given to the next build, whatever happened to it in between."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import tensorrt_rtx as real
import torch

from singlecard.errors import BuildError
from singlecard.network.building import BuildSettings, build_plan
from singlecard.network.net import Net
from singlecard.network.timings import Timings
from tests.network.timing_stand_in import IBuilderConfig, ITimingCache, times_in


class Store:
    """Keeps timings in memory."""

    def __init__(self, content: bytes = b"") -> None:
        self.content, self.saves = content, 0

    def load(self) -> bytes:
        return self.content

    def save(self, own: bytes, merge: Callable[[bytes, bytes], bytes]) -> None:
        self.saves += 1
        self.content = merge(self.content, own) if self.content else own


def timings(config: Any, store: Store) -> Timings:
    return Timings(config, store)


def test_the_next_build_measures_nothing_again() -> None:
    """Measuring is most of a build's minutes."""
    store = Store()
    for expected in (["gemm", "conv"], []):
        config = IBuilderConfig()
        used = timings(config, store)
        assert config.measure("gemm", "conv") == expected
        used.save()
    assert times_in(store.content) == {"gemm": 1, "conv": 1}
    assert store.saves == 1  # nothing new is nothing to write


def test_two_builds_at_once_keep_both_their_timings() -> None:
    """Whoever ends last would take the other's minutes away."""
    store = Store()
    first, second = IBuilderConfig(), IBuilderConfig()
    one, other = timings(first, store), timings(second, store)
    first.measure("gemm", "shared", time=1)
    second.measure("conv", "shared", time=2)
    one.save()
    other.save()
    assert times_in(store.content) == {"gemm": 1, "conv": 2, "shared": 1}


@pytest.mark.parametrize(
    "content",
    [b"not a cache", b"h100|10.13|gemm=9", b"l4|10.14|gemm=9"],
    ids=["unreadable", "another card", "another version"],
)
def test_timings_from_elsewhere_are_replaced(content: bytes) -> None:
    """Times of another card choose slow kernels, and what nobody can read must not end a build."""
    store, config = Store(content), IBuilderConfig()
    used = timings(config, store)
    assert config.measure("gemm") == ["gemm"]
    used.save()
    assert store.content == b"l4|10.13|gemm=1"


def test_a_builder_without_timing_caches_builds_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache only saves time: that none can be made is no reason not to build."""
    monkeypatch.setattr(IBuilderConfig, "create_timing_cache", lambda *_: None)
    store = Store()
    timings(IBuilderConfig(), store).save()
    assert not store.saves


def test_the_stand_in_has_the_calls_of_the_real_one() -> None:
    """What runs only here would fail on the card. The real signatures are TensorRT for RTX's, which
    has the same classes, and names those of the stubs of 10.13."""
    for kind in (ITimingCache, IBuilderConfig):
        genuine = getattr(real, kind.__name__)
        for name in vars(kind).keys() - {"measure"}:
            if not name.startswith("_"):
                ours = list(inspect.signature(getattr(kind, name)).parameters)[1:]
                found = re.search(rf"{name}\((.*)\) ->", getattr(genuine, name).__doc__)
                assert found and re.findall(r", (\w+): ", found[1]) == ours, name


def small(net: Net) -> Net:
    x = net.input("x", torch.float16, (8, 16))
    net.mark_output(net.matmul(x, net.constant(torch.ones(16, 16).half())), "y")
    return net


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_the_real_calls_are_taken() -> None:
    """TensorRT for RTX has the classes, whose calls do nothing there: here they are made for real,
    and a call with wrong arguments would be a TypeError."""
    net, store = small(Net()), Store(b"damaged")
    config = net.builder.create_builder_config()
    used = Timings(config, store)
    used.save()
    used._merged(store.content, store.content)
    assert build_plan(net, {}, BuildSettings(("sm89",)), io.BytesIO(), timings=store)


def test_a_build_reads_timings_before_and_keeps_them_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is given to no builder saves nothing; one of a failed build may be half."""
    told: list[str] = []

    class Seen:
        def __init__(self, config: Any, store: Any) -> None:
            assert isinstance(config, real.IBuilderConfig) and store == "store"
            told.append("given")

        def save(self) -> None:
            told.append("kept")

    monkeypatch.setattr("singlecard.network.building.Timings", Seen)
    given: Any = "store"
    build_plan(small(Net()), {}, BuildSettings(("sm89",)), io.BytesIO(), timings=given)
    assert told == ["given", "kept"]
    with pytest.raises(BuildError):  # a network without outputs
        build_plan(Net(), {}, BuildSettings(("sm89",)), io.BytesIO(), timings=given)
    assert told == ["given", "kept", "given"]
