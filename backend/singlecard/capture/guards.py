"""Whether a capture taught Dynamo anything that it must check before each call."""

from __future__ import annotations

from typing import Any

from torch._guards import TracingContext


class Guards:
    """What Dynamo knew of sizes and arguments at one time, to see whether it learnt more since."""

    def __init__(self) -> None:
        self._context = TracingContext.try_get()
        self.look()

    def look(self) -> None:
        """Take what is known now for what was known before."""
        self._before = self._known()

    def have_changed(self) -> bool:
        """Tell, from any thread, whether a guard was added."""
        return bool(self._before != self._known())

    def _known(self) -> Any:
        context = self._context
        if context is None or context.fake_mode is None:
            return None
        shapes = context.fake_mode.shape_env
        known: tuple[Any, ...] = ()
        if shapes is not None:
            known = (
                len(shapes.guards),
                dict(shapes.replacements),
                dict(shapes.var_to_range),
                sum(map(len, shapes.deferred_runtime_asserts.values())),
            )
        return known, len(context.guards_context.aotautograd_guards)
