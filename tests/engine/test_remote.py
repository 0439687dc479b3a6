"""Engines that machines share: whole and trusted, or not at all; and never a run that fails."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from singlecard.engine import remote, signing
from singlecard.engine.build import get_engine
from singlecard.engine.cache import PLAN, Cache, Entry
from singlecard.engine.plan_report import PlanReport
from singlecard.engine.remote import FAILURE_LIMIT, MANIFEST, MANIFEST_LIMIT, RemoteTier
from singlecard.engine.signing import FORMAT, seal, unseal
from singlecard.errors import CacheError, OptionError
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings
from singlecard.network.net import Net
from singlecard.options import Options

A, B = "a" * 64, "b" * 64
KEY, OTHER = b"k" * 32, b"o" * 32
REPORT = PlanReport((), (), (), 0, 0, 0, 0).to_dict()

_count = itertools.count()


def plan_of(content: bytes, section: bytes = b"NGNE") -> bytes:
    """Return what starts as a plan of TensorRT-RTX does."""
    header = b"vtrt\0\0\0\0" + struct.pack("<QQ", 1, 88 + len(content))
    return header.ljust(64, b"\0") + section.ljust(8, b"\0") + bytes(16) + content


PLAN_A, PLAN_B = plan_of(b"plan of a"), plan_of(b"plan of b, longer" * 1000)


def stored(cache: Cache, digest: str, content: bytes, **facts: Any) -> Entry:
    def write(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(content)
        return {"key": {"network": "n"}, "build_seconds": 0.5, "report": REPORT, **facts}

    return cache.store(digest, write)


@pytest.fixture
def here(tmp_path: Path) -> Cache:
    """A machine that has built two engines."""
    cache = Cache(tmp_path / "here")
    stored(cache, A, PLAN_A)
    stored(cache, B, PLAN_B)
    return cache


@pytest.fixture
def there(tmp_path: Path) -> Cache:
    """A machine that has built nothing."""
    return Cache(tmp_path / "there")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SINGLECARD_REMOTE_CACHE", raising=False)
    monkeypatch.delenv("SINGLECARD_SIGNING_KEY", raising=False)


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder to share; no other test has its address."""
    yield from _address(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    yield from _address("memory", tmp_path)


def _address(protocol: str, folder: Path) -> Iterator[str]:
    address = f"{protocol}://{folder}/shared.{next(_count)}"
    yield address
    for path in [path for path in MemoryFileSystem.store if path.startswith(str(folder))]:
        del MemoryFileSystem.store[path]


class Shared:
    """The files of a remote, as somebody who may write there sees them."""

    def __init__(self, url: str) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(url)

    def path(self, digest: str, name: str) -> str:
        return f"{self.root}/v{FORMAT}/{digest[:2]}/{digest}/{name}"

    def read(self, digest: str, name: str) -> bytes:
        return bytes(self.fs.cat_file(self.path(digest, name)))

    def write(self, digest: str, name: str, content: bytes) -> None:
        self.fs.makedirs(self.path(digest, name).rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(self.path(digest, name), content)

    def remove(self, digest: str, name: str) -> None:
        self.fs.rm_file(self.path(digest, name))

    def names(self) -> set[str]:
        """Return the files by what follows the format's folder."""
        found = self.fs.find(self.root) if self.fs.exists(self.root) else []
        return {path.partition(f"/v{FORMAT}/")[2] for path in found}


def pushed(url: str, cache: Cache, key: bytes | None = None) -> Shared:
    """Send both engines of a machine."""
    for digest in (A, B):
        RemoteTier(url, key).push(found(cache, digest))
    return Shared(url)


def found(cache: Cache, digest: str) -> Entry:
    entry = cache.find(digest)
    assert entry is not None
    return entry


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "singlecard.remote" and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("key", [None, KEY])
def test_round_trip(
    url: str, key: bytes | None, here: Cache, there: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """What one machine built another runs, with all that was known of it, and no complaint."""
    pushed(url, here, key)
    entry = RemoteTier(url, key).fetch(A, there)
    assert entry is not None and entry.plan.read_bytes() == PLAN_A
    again = found(there, A)
    for name in ("key", "build_seconds", "report", "plan_digest", "plan_bytes"):
        assert again.manifest[name] == found(here, A).manifest[name]
    assert again.manifest["remote"]["created"] == found(here, A).manifest["created"]
    assert there.find(B) is None
    assert warnings_of(caplog) == []


def test_layout_on_the_remote(url: str, here: Cache) -> None:
    """The page tells who cleans up there, or mirrors it, where things are."""
    shared = pushed(url, here)
    folders = [f"aa/{A}", f"bb/{B}"]
    assert shared.names() == {
        f"{folder}/{name}" for folder in folders for name in (PLAN, "engine.manifest")
    }
    assert shared.read(A, PLAN) == PLAN_A


def test_miss_is_no_problem(url: str, there: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """An empty remote is where everybody starts."""
    tier = RemoteTier(url)
    for _ in range(FAILURE_LIMIT + 1):
        assert tier.fetch(A, there) is None
    assert warnings_of(caplog) == [] and there.find(A) is None


def unsign(content: bytes) -> bytes:
    return seal(unseal(content, None), None)


def reseal(content: bytes, secret: bytes | None, changes: Any) -> bytes:
    return seal(unseal(content, None) | changes, secret)


def swap(shared: Shared, name: str) -> None:
    a, b = shared.read(A, name), shared.read(B, name)
    shared.write(A, name, b)
    shared.write(B, name, a)


def swap_whole(shared: Shared) -> None:
    swap(shared, PLAN)
    swap(shared, MANIFEST)


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[-1] ^= 1
    return bytes(changed)


def altered(name: str, change: Any) -> Any:
    return lambda shared: shared.write(A, name, change(shared.read(A, name)))


NEWER = f"singlecard-engine {FORMAT + 1} all else is different".encode()

#: What is done to the remote, and what is said of it.
DAMAGES: dict[str, tuple[Any, str]] = {
    "an altered plan": (altered(PLAN, flipped), "its checksum differs"),
    "a truncated plan": (altered(PLAN, lambda plan: plan[:-1]), "bytes instead of"),
    "an empty plan": (altered(PLAN, lambda plan: b""), "0 bytes instead of"),
    "a longer plan": (altered(PLAN, lambda plan: plan + b"."), "it has more than"),
    "no plan": (lambda shared: shared.remove(A, PLAN), "although its manifest is"),
    "swapped plans": (lambda shared: swap(shared, PLAN), "it has more than"),
    "swapped engines": (swap_whole, f"it is for {B}"),
    "an altered manifest": (altered(MANIFEST, flipped), "its checksum differs"),
    "a truncated manifest": (altered(MANIFEST, lambda text: text[:-9]), "its checksum differs"),
    "an empty manifest": (altered(MANIFEST, lambda text: b""), "does not start with a seal"),
    "a foreign manifest": (altered(MANIFEST, lambda text: b"<html>"), "does not start with a seal"),
    "a huge manifest": (
        altered(MANIFEST, lambda text: text + bytes(MANIFEST_LIMIT)),
        f"more than {MANIFEST_LIMIT} bytes",
    ),
    "a newer format": (altered(MANIFEST, lambda text: NEWER), "upgrade singlecard"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(
    name: str, url: str, here: Cache, there: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged plan crashes the process that loads it, or answers wrong."""
    damage, says = DAMAGES[name]
    shared = pushed(url, here, KEY)
    damage(shared)
    for key in (KEY, None):
        assert RemoteTier(url, key).fetch(A, there) is None
    assert there.find(A) is None and there.entries() == []
    (told,) = warnings_of(caplog)  # once, though it happened twice
    assert says in told and f"{shared.root}/v{FORMAT}/aa/{A}/engine." in told


@pytest.mark.parametrize("name", sorted(DAMAGES.keys() - {"a newer format"}))
def test_damage_is_repaired(name: str, url: str, here: Cache, there: Cache) -> None:
    """What is damaged must not stay so for ever because something is there."""
    shared = pushed(url, here)
    DAMAGES[name][0](shared)
    tier = RemoteTier(url)
    assert tier.fetch(A, there) is None
    tier.push(stored(there, A, PLAN_A))
    assert shared.read(A, PLAN) == PLAN_A
    third = Cache(there.folder.with_name("third"))
    entry = tier.fetch(A, third)
    assert entry is not None and entry.plan.read_bytes() == PLAN_A


@pytest.mark.parametrize("damage", ["a truncated plan", "a longer plan", "no plan", "no manifest"])
def test_sender_repairs_what_it_sees(damage: str, url: str, here: Cache, there: Cache) -> None:
    """A machine that only builds and never fetches must not leave half an engine as it is."""
    shared = pushed(url, here)
    if damage == "no manifest":
        shared.remove(A, MANIFEST)
    else:
        DAMAGES[damage][0](shared)
    RemoteTier(url).push(found(here, A))
    assert RemoteTier(url).fetch(A, there) is not None


def test_newer_format_is_left_alone(url: str, here: Cache, there: Cache) -> None:
    """An old release must not destroy what newer ones share."""
    shared = pushed(url, here)
    shared.write(A, MANIFEST, NEWER)
    RemoteTier(url).push(found(here, A))
    assert shared.read(A, MANIFEST) == NEWER


@pytest.mark.parametrize(
    "changes",
    [
        {"plan_bytes": -1},
        {"plan_bytes": True},
        {"plan_bytes": "88"},
        {"plan_bytes": 1 << 62},
        {"plan_digest": 7},
        {"plan_digest": "../" * 21 + "x"},
        {"digest": None},
        {"report": {}},
        {"report": None},
        {"report": {**REPORT, "kernels": [1]}},
        {"build_seconds": "soon"},
        {"key": None},
        {"key": {"network": 7}},
    ],
)
def test_facts_that_are_none(memory: str, here: Cache, there: Cache, changes: Any) -> None:
    """A manifest that is whole and nonsense must not stop the run that reads it."""
    shared = pushed(memory, here)
    shared.write(A, MANIFEST, reseal(shared.read(A, MANIFEST), None, changes))
    assert RemoteTier(memory).fetch(A, there) is None and there.entries() == []


def test_local_facts_are_not_taken_from_the_remote(memory: str, here: Cache, there: Cache) -> None:
    """A remote must not tell that it is this machine, or which key has been checked."""
    shared = pushed(memory, here)
    forged = {"remote": {"key": signing.key_id(KEY)}, "format": 9, "manifest_digest": "x"}
    shared.write(A, MANIFEST, reseal(shared.read(A, MANIFEST), None, forged))
    entry = RemoteTier(memory).fetch(A, there)
    assert entry is not None and found(there, A).manifest == entry.manifest
    assert not RemoteTier(memory, KEY).check_local(entry)


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (unsign, "is not signed, and a signing key is set"),
        (lambda text: reseal(text, OTHER, {}), "has a wrong signature"),
        (lambda text: text.replace(b"hmac-sha256=", b"hmac-sha256=00")[:-2], "damaged"),
    ],
)
def test_untrusted_is_refused(
    forge: Any, says: str, url: str, here: Cache, there: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may write to the folder would choose what runs on the card."""
    shared = pushed(url, here, KEY)
    for digest in (A, B):
        shared.write(digest, MANIFEST, forge(shared.read(digest, MANIFEST)))
        assert RemoteTier(url, KEY).fetch(digest, there) is None
    assert there.entries() == []
    (told,) = warnings_of(caplog)
    assert says in told and f"{shared.root}/v{FORMAT}/aa/{A}/{MANIFEST}" in told
    assert "built here" in told


def test_forged_facts_with_an_old_signature(memory: str, here: Cache, there: Cache) -> None:
    """A plan of the forger's must not come in behind a manifest that was signed once."""
    shared = pushed(memory, here, KEY)
    seal_of_a = shared.read(A, MANIFEST).partition(b"\n")[0]
    evil = plan_of(b"another")
    facts = stored(Cache(there.folder / "forger"), A, evil).manifest
    line, _, body = seal(facts, None).partition(b"\n")
    signature = re.search(rb"hmac-sha256=\w+", seal_of_a)
    assert signature is not None
    shared.write(A, MANIFEST, line.replace(b"hmac-sha256=none", signature[0]) + b"\n" + body)
    shared.write(A, PLAN, evil)
    assert RemoteTier(memory, KEY).fetch(A, there) is None
    entry = RemoteTier(memory).fetch(A, there)  # it is the signature alone that tells
    assert entry is not None and entry.plan.read_bytes() == evil


def test_untrusted_is_replaced_by_ours(url: str, here: Cache, there: Cache) -> None:
    """A folder that was filled before there was a key becomes signed as engines are built."""
    shared = pushed(url, here)
    RemoteTier(url, KEY).push(stored(there, A, PLAN_A))
    assert unseal(shared.read(A, MANIFEST), KEY)["digest"] == A
    signed = shared.read(A, MANIFEST)
    RemoteTier(url).push(found(here, A))  # who has no key leaves it
    assert shared.read(A, MANIFEST) == signed


def test_plan_with_a_library_is_neither_fetched_nor_sent(
    memory: str, here: Cache, there: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Its code would run as TensorRT loads the plan, signed or not."""
    shared = pushed(memory, here, KEY)
    evil = plan_of(b"\x7fELF", b"NGLP")
    facts = stored(Cache(there.folder / "forger"), A, evil).manifest
    shared.write(A, PLAN, evil)
    shared.write(A, MANIFEST, seal(facts, KEY))
    assert RemoteTier(memory, KEY).fetch(A, there) is None and there.entries() == []
    (told,) = warnings_of(caplog)
    assert f"aa/{A}/{PLAN} carries a plugin library" in told
    RemoteTier(memory, KEY).push(stored(there, "c" * 64, evil))
    assert f"cc/{'c' * 64}/{PLAN}" not in shared.names()
    assert "It is not sent" in warnings_of(caplog)[-1]


def test_engine_from_before_the_key_is_not_trusted(url: str, here: Cache, there: Cache) -> None:
    """Setting a key must protect from what was fetched the day before, too."""
    shared = pushed(url, here)
    RemoteTier(url).fetch(A, there)
    tier = RemoteTier(url, KEY)
    assert not tier.check_local(found(there, A))
    tier.push(found(there, A))  # nor is it signed as if it were ours
    assert b"hmac-sha256=none" in shared.read(A, MANIFEST)
    assert tier.find_local(A, there) is None and there.find(A) is None


def test_untrusted_engine_that_comes_in_between(memory: str, here: Cache, there: Cache) -> None:
    """The local cache keeps what is whole: a process without the key may have been faster."""
    pushed(memory, here)
    RemoteTier(memory).fetch(A, there)
    pushed(memory, here, KEY)
    assert RemoteTier(memory, KEY).fetch(A, there) is None
    assert RemoteTier(memory, KEY).find_local(A, there) is None
    assert RemoteTier(memory, KEY).fetch(A, there) is not None


def test_engine_of_this_machine_is_trusted(url: str, here: Cache, there: Cache) -> None:
    """Setting a key must not throw away what was built here, or fetched with that key."""
    tier = RemoteTier(url, KEY)
    assert tier.find_local(A, here) is not None
    pushed(url, here, KEY)
    tier.fetch(A, there)
    assert tier.find_local(A, there) is not None
    assert RemoteTier(url).find_local(A, there) is not None
    assert RemoteTier(url, OTHER).find_local(A, there) is None


def test_untrusted_engine_that_cannot_be_removed(memory: str, here: Cache, there: Cache) -> None:
    """It must not be loaded for want of a better one; the error names the folder and the way."""
    pushed(memory, here)
    entry = RemoteTier(memory).fetch(A, there)
    assert entry is not None  # and in use
    with pytest.raises(CacheError, match="SINGLECARD_CACHE") as caught:
        RemoteTier(memory, KEY).find_local(A, there)
    assert str(entry.folder) in str(caught.value) and "without the signing key" in str(caught.value)


def test_what_is_whole_is_not_sent_again(
    url: str, here: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred machines that build the same must not move a hundred times its bytes."""
    pushed(url, here, KEY)

    def put(*_: Any, **__: Any) -> None:
        raise AssertionError("sent again")

    for kind in (LocalFileSystem, MemoryFileSystem):
        monkeypatch.setattr(kind, "put_file", put)
    RemoteTier(url, KEY).push(found(here, A))
    assert remote._health(url).failures == 0


class Interrupted(BaseException):
    """What a signal raises."""


@pytest.mark.parametrize("error", [ConnectionError("reset by peer"), Interrupted()])
@pytest.mark.parametrize("at", ["put_file", "mv", "pipe_file"])
def test_interrupted_upload_is_never_seen(
    at: str,
    error: BaseException,
    url: str,
    here: Cache,
    there: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half an engine, or one without its manifest, must not be found by others."""
    kind = LocalFileSystem if url.startswith("file") else MemoryFileSystem

    def half(self: Any, *arguments: Any, **_: Any) -> None:
        if at == "put_file":
            self.pipe_file(arguments[1], PLAN_A[:20])
        elif at == "pipe_file":
            with self.open(arguments[0], "wb") as file:
                file.write(arguments[1][:20])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(kind, at, half)
        if isinstance(error, Interrupted):
            with pytest.raises(Interrupted):
                RemoteTier(url).push(found(here, A))
        else:
            RemoteTier(url).push(found(here, A))
    shared = Shared(url)
    assert shared.names() <= {f"aa/{A}/{PLAN}"}  # and that only whole
    assert at != "pipe_file" or shared.read(A, PLAN) == PLAN_A
    assert RemoteTier(url).fetch(A, there) is None
    RemoteTier(url).push(found(here, A))
    assert RemoteTier(url).fetch(A, there) is not None


def test_killed_upload_leaves_no_half_plan(url: str, here: Cache, there: Cache) -> None:
    """A plan whose manifest never came is as if it were not there, and the next sender ends it."""
    shared = Shared(url)
    shared.write(A, PLAN, PLAN_A[:20])
    assert RemoteTier(url).fetch(A, there) is None
    RemoteTier(url).push(found(here, A))
    assert RemoteTier(url).fetch(A, there) is not None


def test_remote_that_vanishes_while_a_plan_is_read(
    memory: str,
    here: Cache,
    there: Cache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cable that is pulled must cost the download and nothing else."""
    pushed(memory, here)
    whole = MemoryFileSystem._open

    class Cut:
        def __init__(self, file: Any) -> None:
            self.file, self.reads = file, 0

        def __enter__(self) -> Cut:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def read(self, size: int = -1) -> bytes:
            self.reads += 1
            if self.reads > 3:
                raise ConnectionResetError("the remote is gone")
            return bytes(self.file.read(min(size, 1000)))

    def cut(self: Any, path: str, *arguments: Any, **named: Any) -> Any:
        file = whole(self, path, *arguments, **named)
        return Cut(file) if path.endswith(PLAN) else file

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "_open", cut)
        assert RemoteTier(memory).fetch(B, there) is None
    assert there.entries() == []
    assert not list(there.folder.rglob("*.tmp")) and not list(there.folder.rglob(PLAN))
    (told,) = warnings_of(caplog)
    assert "ConnectionResetError: the remote is gone" in told and memory in told
    assert RemoteTier(memory).fetch(B, there) is not None


def test_no_more_is_read_than_the_manifest_says(
    memory: str, here: Cache, there: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that never ends must not fill the disk."""
    pushed(memory, here)
    whole, given = MemoryFileSystem._open, [0]

    class Endless:
        def __enter__(self) -> Endless:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def read(self, size: int) -> bytes:
            given[0] += size
            return bytes(size)

    def opened(self: Any, path: str, *arguments: Any, **named: Any) -> Any:
        return Endless() if path.endswith(PLAN) else whole(self, path, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, "_open", opened)
    assert RemoteTier(memory).fetch(B, there) is None and there.entries() == []
    assert given[0] == len(PLAN_B) + 1


class Broken(AbstractFileSystem):  # type: ignore[misc]
    """A remote that refuses everything."""

    protocol = "broken"
    calls = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("open", "info", "makedirs", "put_file", "pipe_file", "mv", "rm_file", "exists"):
            type(self).calls += 1
            raise TimeoutError(f"no answer to {name}")
        return super().__getattribute__(name)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(_registry, "broken", Broken)
    monkeypatch.setattr(Broken, "calls", 0)
    return f"broken://host/{next(_count)}"


def test_broken_remote_fails_nothing(
    broken: str, here: Cache, there: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Training and serving must not stop because a bucket does not answer."""
    tier = RemoteTier.of(Options.parse({"remote_cache": broken}))
    assert tier is not None
    assert tier.fetch(A, there) is None
    tier.push(found(here, A))
    told = warnings_of(caplog)
    assert len(told) == 2 and all("TimeoutError: no answer to open" in text for text in told)
    assert broken in told[0] and "Engines are built here" in told[0]


def test_remote_that_keeps_failing_is_left_alone(
    broken: str, there: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that does not answer would cost its timeout for every engine."""
    for _ in range(10):
        assert RemoteTier(broken).fetch(A, there) is None
    assert Broken.calls == FAILURE_LIMIT
    told = warnings_of(caplog)
    assert len(told) == 2 and "left alone until this process ends" in told[1]
    assert RemoteTier(f"{broken}/other").fetch(A, there) is None  # another is asked
    assert Broken.calls == FAILURE_LIMIT + 1


def test_failures_that_are_not_in_a_row_do_not_count(
    memory: str, here: Cache, there: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote that hiccups once in a while must not be given up after a week."""
    pushed(memory, here)

    def fails(*_: Any, **__: Any) -> None:
        raise TimeoutError

    for _ in range(FAILURE_LIMIT * 2):
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "_open", fails)
            assert RemoteTier(memory).fetch(A, there) is None
        assert RemoteTier(memory).fetch("c" * 64, there) is None  # it answers: not there
    assert RemoteTier(memory).fetch(A, there) is not None


def test_refusals_do_not_give_a_remote_up(memory: str, here: Cache, there: Cache) -> None:
    """A few bad files must not take all the good ones away."""
    shared = pushed(memory, here)
    shared.write(A, MANIFEST, b"nonsense")
    for _ in range(FAILURE_LIMIT + 1):
        assert RemoteTier(memory).fetch(A, there) is None
    assert RemoteTier(memory).fetch(B, there) is not None


def test_local_cache_that_cannot_take_an_engine(
    memory: str, here: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk here says nothing about the remote, and is told by who builds."""
    pushed(memory, here)
    (tmp_path / "file").write_text("")
    for _ in range(FAILURE_LIMIT + 1):
        assert RemoteTier(memory).fetch(A, Cache(tmp_path / "file")) is None
    (told,) = warnings_of(caplog)
    assert "cannot be kept" in told and str(tmp_path / "file") in told
    assert RemoteTier(memory).fetch(A, Cache(tmp_path / "good")) is not None


def test_of_reads_options_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet is configured by its environment, and one run by its options, which win."""
    assert RemoteTier.of(Options()) is None
    keys = {}
    for name, key in (("ours", KEY), ("other", OTHER)):
        keys[name] = tmp_path / name
        keys[name].write_bytes(key)
        keys[name].chmod(0o600)
    monkeypatch.setenv("SINGLECARD_SIGNING_KEY", str(keys["ours"]))
    assert RemoteTier.of(Options()) is None
    monkeypatch.setenv("SINGLECARD_REMOTE_CACHE", "memory://environment")
    assert RemoteTier.of(Options()) == RemoteTier("memory://environment", KEY)
    given = {"remote_cache": "memory://given", "signing_key": keys["other"]}
    assert RemoteTier.of(Options.parse(given)) == RemoteTier("memory://given", OTHER)
    monkeypatch.setenv("SINGLECARD_SIGNING_KEY", "")
    assert RemoteTier.of(Options()) == RemoteTier("memory://environment", None)


def test_key_is_not_shown() -> None:
    """What is printed ends in logs and bug reports."""
    assert "kkkk" not in repr(RemoteTier("memory://x", KEY))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("/shared/engines", "is no address"),
        ("engines", "is no address"),
        ("s3:/bucket/engines", "is no address"),
        ("://bucket", "is no address"),
        ("nope://bucket/engines", "fsspec knows no 'nope'"),
        ("simplecache::nope://bucket", "fsspec knows no 'nope'"),
        ("ftp://user:secret@nope::/x", "is no address"),
    ],
)
def test_malformed_address_is_an_error(url: str, says: str) -> None:
    """A typing mistake would be a run that silently shares nothing, or fills a folder 's3:'."""
    with pytest.raises(OptionError, match=re.escape(says)) as caught:
        RemoteTier.of(Options.parse({"remote_cache": url}))
    assert "'s3://bucket/engines'" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_store_without_a_bucket_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be kept beside buckets."""

    class Store(MemoryFileSystem):
        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix("s3://")

    monkeypatch.setitem(_registry, "s3", Store)
    with pytest.raises(OptionError, match="names no bucket"):
        RemoteTier.of(Options.parse({"remote_cache": "s3://"}))
    assert RemoteTier.of(Options.parse({"remote_cache": "s3://bucket"})) is not None


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for sharing must not find out later that nothing was shared."""

    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec, "get_filesystem_class", missing)
        with pytest.raises(OptionError, match="pip install s3fs"):
            RemoteTier.of(Options.parse({"remote_cache": "s3://bucket/engines"}))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(OptionError, match=re.escape('pip install "singlecard[remote]"')):
        RemoteTier.of(Options.parse({"remote_cache": "s3://bucket/engines"}))


def test_object_stores_are_put_to_directly(
    memory: str, here: Cache, there: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving means copying there: each engine would be stored, read and stored again."""
    monkeypatch.setattr(MemoryFileSystem, "protocol", ("memory", "s3"))

    def moves(*_: Any, **__: Any) -> None:
        raise AssertionError("moved")

    monkeypatch.setattr(MemoryFileSystem, "mv", moves)
    pushed(memory, here)
    assert RemoteTier(memory).fetch(A, there) is not None


def test_a_built_engine_is_shared(url: str, tmp_path: Path) -> None:
    """The whole way with a real plan: built on one machine, found on another, the same bytes."""

    def tiny() -> Lowered:
        net = Net()
        x = net.input("input_0", torch.float32, (4, 4))
        net.mark_output(net.matmul(x, net.constant(torch.full((4, 4), 2.0))), "output_0")
        return Lowered(net, (), (), {}, {}, {})

    settings = BuildSettings(("sm89",))
    here, there = Cache(tmp_path / "one"), Cache(tmp_path / "two")
    built = get_engine(tiny(), settings, here)
    tier = RemoteTier(url, KEY)
    tier.push(found(here, built.digest))
    shutil.rmtree(here.folder)
    with there.lock(built.digest):
        assert tier.fetch(built.digest, there) is not None
    loaded = get_engine(tiny(), settings, there)
    assert not loaded.built and loaded.report == built.report
