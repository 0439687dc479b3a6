"""Engines that machines share: a folder behind fsspec, asked for what the local cache lacks.

What is promised stands in ``docs/sharing.md``. Whatever happens on the wire, the run goes on: what
cannot be fetched is built, and what cannot be sent stays here.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import blake3

from singlecard.engine.cache import PLAN, Cache, Entry
from singlecard.engine.plan_report import PlanReport
from singlecard.engine.signing import (
    FORMAT,
    Refused,
    check_plan,
    damaged,
    key_id,
    read_key,
    seal,
    unseal,
)
from singlecard.errors import CacheError, OptionError
from singlecard.observe import events
from singlecard.observe.counters import count
from singlecard.options import Options

log = logging.getLogger("singlecard.remote")

#: The file beside a plan that makes it an engine; written last.
MANIFEST = "engine.manifest"

#: A manifest with more bytes is none; the largest of 575 engines had 216 kB.
MANIFEST_LIMIT = 16 << 20

#: After so many failures in a row a remote is left alone until the process ends.
FAILURE_LIMIT = 3

_PIECE = 8 << 20

#: What fsspec calls stores that put a file whole or not at all, and the package for each. Elsewhere
#: files are written under a temporary name and moved.
_OBJECT_STORES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "oss": "ossfs",
    "oci": "ocifs",
}

#: Facts of an entry that the local cache, or the way from a remote, gave it.
_LOCAL = {"format", "manifest_digest", "remote"}

_Result = TypeVar("_Result")


class _Unreachable(Exception):
    """A remote failed while something was read from it."""


@dataclass
class _Health:
    """What this process has learned of one remote.

    Attributes:
        failures: how many there were in a row.
        told: kinds of problems that were logged as a warning.
        damaged: digests of engines there that are to be replaced.
    """

    failures: int = 0
    told: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)


@functools.cache
def _health(url: str) -> _Health:
    return _Health()


@dataclass(frozen=True)
class RemoteTier:
    """A folder of engines that machines share.

    Attributes:
        url: the folder, as fsspec writes it.
        key: the secret that its engines are signed with, or None: then they are taken as they are.
    """

    url: str
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, options: Options) -> RemoteTier | None:
        """Return the remote that options, or else the environment, name; None where neither does.

        Nothing is sent over a network yet.

        Raises:
            OptionError: the address is malformed, a package for it is missing, or the file of the
                signing key is not a key that only its owner can read.
        """
        url = options.remote_cache or os.environ.get("SINGLECARD_REMOTE_CACHE")
        if not url:
            return None
        _check_url(url)
        given = os.environ.get("SINGLECARD_SIGNING_KEY")
        file = options.signing_key or (Path(given).expanduser() if given else None)
        return cls(url, read_key(file) if file is not None else None)

    def find_local(self, digest: str, cache: Cache) -> Entry | None:
        """Return what the local cache has, removing it where `check_local` does not take it.

        Raises:
            CacheError: the cache cannot be used, or keeps an engine that is not to be loaded.
        """
        entry = cache.find(digest)
        if entry is None or self.check_local(entry):
            return entry
        folder, source = entry.folder, self._source(entry)
        del entry  # what is held is not removed
        with suppress(OSError):
            cache.remove(digest)
        if os.path.lexists(folder):
            raise CacheError(
                f"the engine {folder} was fetched from {source} without the signing key that is "
                "set now, and cannot be removed: end the processes that use it, or choose another "
                "folder with the option cache_dir or SINGLECARD_CACHE"
            )
        log.warning("removed %s: it came from %s without this signing key", folder, source)
        return None

    def check_local(self, entry: Entry) -> bool:
        """Tell whether an engine in the local cache may be loaded.

        That is so where it was built on this machine, where no key is set, and where its signature
        was checked with this key when it was fetched.
        """
        origin = entry.manifest.get("remote")
        if self.key is None or origin is None:
            return True
        return isinstance(origin, dict) and origin.get("key") == key_id(self.key)

    @staticmethod
    def _source(entry: Entry) -> str:
        origin = entry.manifest.get("remote")
        return str(origin.get("address")) if isinstance(origin, dict) else "a remote"

    def fetch(self, digest: str, cache: Cache) -> Entry | None:
        """Return an engine from the remote, once it lies whole in the local cache.

        None where it is not there, is refused, or the remote or the local cache fails: never an
        error. Call it with ``cache.lock(digest)`` held, and after `find_local`.
        """
        return self._attempt("cannot fetch from", digest, lambda: self._fetch(digest, cache))

    def push(self, entry: Entry) -> None:
        """Send an engine, signed where there is a key; one that is there and whole stays.

        Failures are logged, and never an error.
        """
        self._attempt("cannot send to", entry.digest, lambda: self._push(entry))

    def _attempt(self, verb: str, digest: str, act: Callable[[], _Result | None]) -> _Result | None:
        """Do something with the remote, and let none of its failures out."""
        health = _health(self.url)
        if health.failures >= FAILURE_LIMIT:
            return None
        result = None
        try:
            result = act()
        except Refused as error:
            if error.kind in ("damaged", "code"):
                health.damaged.add(digest)
            self._tell(error.kind, digest, str(error))
        except CacheError as error:
            self._tell("cache", digest, f"what was fetched cannot be kept: {error}")
            return None  # the remote had no part in it
        except _Unreachable as error:
            self._count_failure(health, verb, digest, error.__cause__ or error)
            return None
        except Exception as error:
            self._count_failure(health, verb, digest, error)
            return None
        health.failures = 0
        return result

    def _count_failure(self, health: _Health, verb: str, digest: str, error: BaseException) -> None:
        """Log that the remote failed, and give it up after too many failures in a row."""
        shown = _without_password(self.url)
        name = type(error).__name__
        text = f"{verb} {shown}: {name}: {error}. Engines are built here, and stay here"
        self._tell(f"{verb} {name}", digest, text)
        health.failures += 1
        if health.failures == FAILURE_LIMIT:
            self._tell(
                "given up",
                digest,
                f"{shown} failed {FAILURE_LIMIT} times in a row and is left alone until this "
                "process ends. Check remote_cache (SINGLECARD_REMOTE_CACHE), and what it needs to "
                "log in",
            )

    def _tell(self, kind: str, digest: str, text: str) -> None:
        """Log a problem: the first of its kind as a warning, others for who looks for them."""
        told = _health(self.url).told
        if kind not in told:
            told.add(kind)
            events.record_remote_failure(digest, text)
        else:
            count(remote_failures=1)
            log.debug("failed %s: %s", digest[: events.SHOWN_DIGITS], text)

    def _connect(self) -> tuple[Any, str]:
        """Return the file system, which fsspec keeps for us, and the folder in it.

        It is asked for each time: what a process opened does not work in its forks.
        """
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.url)
        return filesystem, f"{str(root).rstrip('/')}/v{FORMAT}"

    def _fetch(self, digest: str, cache: Cache) -> Entry | None:
        started = time.perf_counter()
        filesystem, root = self._connect()
        folder = _folder(root, digest)
        facts = self._facts(filesystem, folder, digest)
        if facts is None:
            events.record_remote_miss(digest)
            return None
        source = f"{folder}/{PLAN}"
        shown = filesystem.unstrip_protocol(source)
        origin = {
            "address": filesystem.unstrip_protocol(folder),
            "created": facts.get("created"),
            "key": key_id(self.key) if self.key is not None else None,
        }

        def write(temporary: Path) -> dict[str, Any]:
            plan = temporary / PLAN
            try:
                _download(filesystem, source, plan, facts)
                check_plan(plan)
            except Refused as error:
                text = f"{shown} {error}"
                if error.kind == "code":
                    text += ". The engine is built here; have the file removed"
                raise Refused(error.kind, text) from error
            return {name: facts[name] for name in facts.keys() - _LOCAL} | {"remote": origin}

        entry = cache.store(digest, write)
        if not self.check_local(entry):
            raise CacheError(
                f"another process put an engine that is not signed into {entry.folder} meanwhile"
            )
        events.record_remote_hit(digest, entry.size, time.perf_counter() - started)
        return entry

    def _facts(self, filesystem: Any, folder: str, digest: str) -> dict[str, Any] | None:
        """Return what the manifest of an engine says, or None where there is none.

        Raises:
            Refused: it is not what may be loaded; the message starts with the file.
        """
        file = f"{folder}/{MANIFEST}"
        try:
            with filesystem.open(file, "rb") as stream:
                content = _read(stream, MANIFEST_LIMIT + 1)
        except FileNotFoundError:
            return None
        try:
            if len(content) > MANIFEST_LIMIT:
                raise damaged(f"it has more than {MANIFEST_LIMIT} bytes")
            facts = unseal(content, self.key)
            _check_facts(facts, digest)
        except Refused as error:
            raise Refused(error.kind, f"{filesystem.unstrip_protocol(file)} {error}") from error
        return facts

    def _push(self, entry: Entry) -> None:
        if not self.check_local(entry):
            log.debug(
                "not sent %s: it came from a remote, and is not signed",
                entry.digest[: events.SHOWN_DIGITS],
            )
            return
        try:
            check_plan(entry.plan)
        except Refused as error:
            raise Refused("not sent", f"{entry.plan} {error}. It is not sent") from error
        started = time.perf_counter()
        filesystem, root = self._connect()
        folder = _folder(root, entry.digest)
        if self._is_whole(filesystem, folder, entry.digest):
            log.debug("not sent %s: it is there", entry.digest[: events.SHOWN_DIGITS])
            return
        facts = {name: entry.manifest[name] for name in entry.manifest.keys() - _LOCAL}
        _place(
            filesystem, f"{folder}/{PLAN}", lambda path: filesystem.put_file(str(entry.plan), path)
        )
        sealed = seal(facts, self.key)
        _place(filesystem, f"{folder}/{MANIFEST}", lambda path: filesystem.pipe_file(path, sealed))
        _health(self.url).damaged.discard(entry.digest)
        events.record_remote_upload(entry.digest, entry.size, time.perf_counter() - started)

    def _is_whole(self, filesystem: Any, folder: str, digest: str) -> bool:
        """Tell whether an engine is there that this process would load, or must leave to others."""
        if digest in _health(self.url).damaged:
            return False
        try:
            facts = self._facts(filesystem, folder, digest)
            if facts is None:
                return False
            size = filesystem.info(f"{folder}/{PLAN}").get("size")
        except Refused as error:
            return error.kind in ("newer", "report")
        except FileNotFoundError:
            return False
        return size in (None, facts["plan_bytes"])


def _folder(root: str, digest: str) -> str:
    return f"{root}/{digest[:2]}/{digest}"


def _check_url(url: str) -> None:
    """Raise an `OptionError` where fsspec cannot do anything with an address."""
    shown = f"remote_cache={_without_password(url)!r}"
    try:
        import fsspec
    except ImportError as error:
        raise OptionError(
            f"{shown} needs fsspec, which is not installed: run "
            "'pip install \"singlecard[remote]\"'"
        ) from error
    for link in url.split("::"):
        protocol = link.partition("://")[0]
        if not re.fullmatch(r"[a-z][a-z0-9+._-]*", protocol) or ("://" not in link and link == url):
            raise OptionError(
                f"{shown} is no address: it takes one such as 's3://bucket/engines' or "
                "'file:///shared/engines'"
            )
        try:
            kind = fsspec.get_filesystem_class(protocol)
        except ValueError as error:
            raise OptionError(
                f"{shown} is not valid: fsspec knows no {protocol!r}. It takes an address such as "
                "'s3://bucket/engines' or 'file:///shared/engines'"
            ) from error
        except ImportError as error:
            package = _OBJECT_STORES.get(protocol)
            cure = f"run 'pip install {package}'" if package else "install it"
            raise OptionError(
                f"{shown} needs a package that is not installed ({error}): {cure}"
            ) from error
        if protocol in _OBJECT_STORES and not str(kind._strip_protocol(link)).strip("/"):
            raise OptionError(
                f"{shown} names no bucket: it takes an address such as '{protocol}://bucket/engines'"
            )


def _without_password(url: str) -> str:
    return re.sub(r"(://)[^/@]*@", r"\1", url)


def _check_facts(facts: dict[str, Any], digest: str) -> None:
    """Refuse facts that are not an engine's, or another engine's."""
    if facts.get("digest") != digest:
        raise damaged(f"it is for {facts.get('digest')}")
    size, checksum = facts.get("plan_bytes"), facts.get("plan_digest")
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise damaged(f"a plan of {size!r} bytes")
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
        raise damaged(f"{checksum!r} is no checksum")
    try:
        PlanReport.from_dict(facts["report"])
        float(facts["build_seconds"])
        if not all(isinstance(part, str) for part in facts["key"].values()):
            raise TypeError("a part of the key is no text")
    except Exception as error:
        raise Refused(
            "report",
            f"does not have the facts that this release of singlecard reads ({error!r}). The "
            "engine is built here; have all who share a folder run the same release",
        ) from error


def _read(stream: Any, limit: int) -> bytes:
    """Return a stream's content, and no more than ``limit`` bytes of it."""
    pieces, left = [], limit
    while left and (piece := stream.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _pieces(filesystem: Any, source: str, size: int) -> Iterator[bytes]:
    """Yield a remote file in pieces: ``size`` bytes, and one more where it has more.

    Raises:
        Refused: it is not there.
        _Unreachable: the remote failed, with the cause.
    """
    try:
        with filesystem.open(source, "rb") as stream:
            left = size + 1
            while left and (piece := stream.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece
    except FileNotFoundError as error:
        raise damaged("it is not there, although its manifest is") from error
    except Exception as error:
        raise _Unreachable from error


def _download(filesystem: Any, source: str, plan: Path, facts: dict[str, Any]) -> None:
    """Write a remote plan to a file, unless it is not what its manifest says.

    Raises:
        Refused: it has another length or checksum, or is not there.
        _Unreachable: the remote failed, with the cause.
        OSError: the file could not be written.
    """
    hasher, size, received = blake3.blake3(), facts["plan_bytes"], 0
    with plan.open("wb") as file:
        for piece in _pieces(filesystem, source, size):
            received += len(piece)
            if received > size:
                raise damaged(f"it has more than {size} bytes")
            hasher.update(piece)
            file.write(piece)
    if received != size:
        raise damaged(f"{received} bytes instead of {size}")
    if hasher.hexdigest() != facts["plan_digest"]:
        raise damaged("its checksum differs")


def _place(filesystem: Any, path: str, send: Callable[[str], None]) -> None:
    """Have a file on the remote whole, or not at all."""
    protocol = filesystem.protocol
    if _OBJECT_STORES.keys() & ({protocol} if isinstance(protocol, str) else set(protocol)):
        send(path)
        return
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        send(temporary)
        filesystem.mv(temporary, path)
    except BaseException:
        with suppress(Exception):
            filesystem.rm_file(temporary)
        raise
