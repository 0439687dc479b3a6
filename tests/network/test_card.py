"""What is asked of PyTorch where a card is, as far as it shows without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.card import Card


class _Graph:
    """Stands in for `torch.cuda.CUDAGraph`: it fails where it is told to."""

    fails: str | None = None
    said: list[str] = []

    def _say(self, what: str) -> None:
        self.said.append(what)
        if what == self.fails:
            raise RuntimeError(f"{what} failed")

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        self._say("begin")
        assert capture_error_mode == "thread_local"

    def capture_end(self) -> None:
        self._say("end")

    def replay(self) -> None:
        self._say("replay")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """The real one, without CUDA behind it."""

    @contextlib.contextmanager
    def on(stream: object) -> Iterator[None]:
        _Graph.said.append("enter")
        yield
        _Graph.said.append("leave")

    monkeypatch.setattr(_Graph, "fails", None)
    monkeypatch.setattr(_Graph, "said", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(
        torch._C,
        "_cuda_endAllocateToPool",
        lambda device, pool: _Graph.said.append(f"end pool {pool} of {device}"),
    )
    made = Card.__new__(Card)
    made.device, made.stream = torch.device("cuda", 0), lambda: 77
    return made


def test_what_is_asked_of_pytorch(card: Card) -> None:
    """Work would be recorded on a stream that others use, or not at all."""
    replay = card.recorded(lambda stream: _Graph.said.append(f"launch on {stream}"))
    assert _Graph.said == ["enter", "begin", "launch on 77", "end", "leave"]
    replay()
    assert _Graph.said[-1] == "replay"


@pytest.mark.parametrize("fails", ["begin", "end"])
def test_pytorchs_allocator_leaves_a_recording_that_failed(card: Card, fails: str) -> None:
    """It would wait for its end for ever, and never reuse memory of several streams."""
    _Graph.fails = fails

    def end(self: _Graph) -> None:
        self._say("end")
        raise RuntimeError("there is nothing to end")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_Graph, "capture_end", end)
        with pytest.raises(RuntimeError, match=f"{fails} failed"):
            card.recorded(lambda stream: None)
    assert "end pool (0, 1) of 0" in _Graph.said


def test_the_reason_of_a_failure_is_kept(card: Card) -> None:
    """What CUDA says behind it is only that something failed before."""
    _Graph.fails = "end"

    def launch(stream: int) -> None:
        raise RuntimeFailure("TensorRT cannot be captured")

    with pytest.raises(RuntimeFailure, match="cannot be captured"):
        card.recorded(launch)
    assert "end pool (0, 1) of 0" in _Graph.said
