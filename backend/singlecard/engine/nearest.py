"""Why the cache does not have an engine: what its key and the nearest entry's key do not share."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from singlecard.engine.cache import MANIFEST, Cache
from singlecard.files import MOST_KEPT, read_file
from singlecard.observe.events import SHOWN_DIGITS

#: Entries that are looked at, those that were used last.
RECENT = 256

#: The part that all parts with a dot in their names explain.
_WHOLE = "network"

#: What tells that two networks are of one model.
_MODEL = ("network.structure", "network.weights")

_FOLDER = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Difference:
    """A part of a key that two keys do not share.

    Attributes:
        part: its name, such as ``weights`` or ``targets``.
        here, there: its value in either key: readable, or a digest.
    """

    part: str
    here: str
    there: str


@dataclass(frozen=True)
class Nearest:
    """The entry whose key is most like another key, and how the two differ."""

    digest: str
    key: Mapping[str, str]
    differences: tuple[Difference, ...]

    @property
    def sentence(self) -> str:
        """Return such as ``weights and targets differ from the nearest entry 1a2b3c4d5e6f``."""
        names = [item.part for item in self.differences]
        if not names:
            return f"the entry {self.digest[:SHOWN_DIGITS]} has this key, and cannot be used"
        verb = "differ" if len(names) > 1 or names[0].endswith("s") else "differs"
        return f"{_listed(names)} {verb} from the nearest entry {self.digest[:SHOWN_DIGITS]}"


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> tuple[Difference, ...]:
    """Return what two keys do not share, in the order of the first."""
    names = [name for name in (*here, *there) if not _explains(name) and name != _WHOLE]
    if here.get(_WHOLE) != there.get(_WHOLE):
        finer = [
            name for name in here if _explains(name) and name in there and here[name] != there[name]
        ]
        names = [*(finer or [_WHOLE]), *names]
    return tuple(
        Difference(part_title(name), here.get(name, "not told"), there.get(name, "not told"))
        for name in dict.fromkeys(names)
        if here.get(name) != there.get(name)
    )


def part_title(name: str) -> str:
    """Return a part's name as it is shown: ``weights`` for ``network.weights``."""
    return name.removeprefix(f"{_WHOLE}.")


def nearest_of(
    parts: Mapping[str, str], keys: Iterable[tuple[str, Mapping[str, str]]]
) -> Nearest | None:
    """Return which of some keys is most like ``parts``; None where there are none.

    One of the same model comes first, then the one with most equal parts, then the first.
    """

    def likeness(item: tuple[str, Mapping[str, str]]) -> tuple[int, int]:
        key = item[1]
        equal = [name for name, value in parts.items() if key.get(name) == value]
        return sum(name in _MODEL for name in equal), len(equal)

    found = max(keys, key=likeness, default=None)  # the first of equals
    return found and Nearest(*found, differences(parts, found[1]))


def recent_keys(cache: Cache, limit: int = RECENT) -> Iterator[tuple[str, dict[str, str]]]:
    """Return digests and keys of the entries that were used last, those first.

    Nothing but the keys is read: they serve for words, and nothing is loaded by them.
    """
    folder = cache.path("0" * 64).parent
    folders = []
    try:
        for name in os.listdir(folder):
            if _FOLDER.fullmatch(name):
                with contextlib.suppress(OSError):  # removed meanwhile
                    folders.append((os.lstat(folder / name).st_mtime_ns, name))
    except OSError:
        return
    for _, name in sorted(folders, reverse=True)[:limit]:
        key = read_key(cache, name)
        if key is not None:
            yield name, key


def read_key(cache: Cache, digest: str) -> dict[str, str] | None:
    """Return the key of an entry, or None where there is none that can be read.

    The plan report, which makes up most of a manifest, is passed over.
    """
    try:
        text = read_file(cache.path(digest) / MANIFEST, MOST_KEPT).decode()
        key, _ = json.JSONDecoder().raw_decode(text, text.index("{", text.index('"key":')))
    except (OSError, ValueError):
        return None
    whole = isinstance(key, dict) and _WHOLE in key
    return key if whole and all(isinstance(value, str) for value in key.values()) else None


def miss_reason(parts: Mapping[str, str], cache: Cache) -> str:
    """Return why a cache has no engine for a key, as one clause."""
    nearest = nearest_of(parts, recent_keys(cache))
    return "the cache is empty" if nearest is None else nearest.sentence


def _explains(name: str) -> bool:
    return name.startswith(f"{_WHOLE}.")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
