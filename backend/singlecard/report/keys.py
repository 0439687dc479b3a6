"""The keys of a model's engines: captured and lowered as for a build, and not built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from singlecard.engine.build import Engine, key_digest, key_parts
from singlecard.engine.cache import Cache
from singlecard.engine.nearest import Nearest, nearest_of, read_key, recent_keys
from singlecard.lowering.lower import Lowered
from singlecard.options import Options
from singlecard.partition import Segment
from singlecard.report.doors import enter
from singlecard.report.measure import run_compiled
from singlecard.report.model import Model
from singlecard.session import Session


@dataclass(frozen=True)
class EngineLookup:
    """What the cache has for one engine of a model.

    Attributes:
        digest: the engine's digest.
        key: the parts of its key.
        cached: whether the cache has it.
        nearest: the entry that is most like it, where the cache has others only.
    """

    digest: str
    key: Mapping[str, str]
    cached: bool
    nearest: Nearest | None = None

    @property
    def reason(self) -> str:
        """Return whether the engine is there, and why not, in one clause."""
        if self.cached:
            return "the cache has it"
        return "the cache is empty" if self.nearest is None else self.nearest.sentence


def look_up(key: Mapping[str, str], cache: Cache) -> EngineLookup:
    """Look a key up, and the nearest entry where there is none; nothing is read but keys."""
    digest = key_digest(key)
    if read_key(cache, digest) is not None:
        return EngineLookup(digest, key, True)
    return EngineLookup(digest, key, False, nearest_of(key, recent_keys(cache)))


def keys_of_model(model: Model, options: Options) -> list[dict[str, str]]:
    """Return the key of each engine that a build of the model would make, in order.

    Precisions that are placed by what plans say have trial plans built, unless a build has done so
    before. An op that only the builder itself refuses is known where a build has found it out.
    """
    entrance = enter(model.module, model.args, model.kwargs, model.dynamic_shapes, options)
    chosen = dataclasses.replace(entrance.options, build="now")
    session = _KeySession(chosen, "eager", True)
    run_compiled(session, entrance.call.copied(), entrance.axes)
    segments = [
        segment
        for graph in session.graphs
        if graph.partition is not None
        for segment in graph.partition.segments
    ]
    return [session.keys[segment] for segment in segments if segment in session.keys]


@dataclass
class _KeySession(Session):
    """A session that works keys out where another gets engines."""

    keys: dict[Segment, dict[str, str]] = field(default_factory=dict)

    def _engine(self, lowered: Lowered, segment: Segment) -> Engine | None:  # type: ignore[override]
        parts = key_parts(lowered, self.settings)
        self._check_remembered(parts, segment)
        self.keys[segment] = parts
        return None
