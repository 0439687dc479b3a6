"""The segments of a graph as PyTorch runs them, for calls that their engines do not take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from singlecard.capture.program import Program
from singlecard.errors import RuntimeFailure
from singlecard.partition import Segment
from singlecard.runtime.frozen import Frozen
from singlecard.runtime.runners import Runner, eager_runner

#: Gives a Program and the segments that it was cut into.
Cut = Callable[[], tuple[Program, Sequence[Segment]]]


class Pieces:
    """Segments that run in PyTorch if they must, made when the first one does.

    They hold the graph's weights, which its engines have on the card already: until then they are
    nowhere else. So their graph may have to be captured once more, which takes a second or two.
    """

    def __init__(self, cut: Cut, frozen: Frozen) -> None:
        """Prepare.

        Args:
            cut: gives the segments.
            frozen: the weights that they are to hold.
        """
        self._cut, self._frozen = cut, frozen
        self._made: tuple[Program, Sequence[Segment]] | None = None
        self._lock = threading.Lock()

    def runner(self, place: int, segment: Segment) -> Runner:
        """Return what runs the segment of this place."""
        names = _names(segment)
        made: list[Runner] = []

        def run(values: Sequence[Any]) -> Sequence[Any]:
            if not made:
                runner = self._runner(place, names)
                # Weights that were changed may be changed back, and these answers count again.
                if not self._frozen.are_unchanged():
                    return runner(values)
                made.append(runner)
            return made[0](values)

        return run

    def _runner(self, place: int, names: list[str]) -> Runner:
        with self._lock:
            cut = self._made or self._cut()
            if self._frozen.are_unchanged():
                self._made = cut
            program, segments = cut
        if place >= len(segments) or _names(segments[place]) != names:
            raise RuntimeFailure(
                "a part of the model cannot run in PyTorch: its graph was cut in another way when "
                "it was captured again. Call torch._dynamo.reset(), and please report this"
            )
        return eager_runner(program, segments[place])


def _names(segment: Segment) -> list[str]:
    return [node.name for node in (*segment.inputs, *segment.outputs)]
