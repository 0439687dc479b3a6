"""What an engine from elsewhere must show before it is loaded: whole, signed, no code of its own.

A manifest on a remote is one line that seals the JSON below it. The seal is checked on the bytes,
before they are parsed, and the plan's own table of contents before TensorRT is given the plan.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blake3

from singlecard.errors import OptionError
from singlecard.files import open_regular

#: Of what lies on a remote. Each release reads and writes its own.
FORMAT = 1

#: Bytes that a key has at least, as long as what HMAC-SHA256 makes of it, and at most.
SHORTEST_KEY, LONGEST_KEY = 32, 4096

_MAKE_KEY = "make one with 'openssl rand -hex 32 > FILE && chmod 600 FILE'"

_FORMAT = re.compile(rb"singlecard-engine ([0-9]{1,9})[ \n]")
_SEAL = re.compile(
    rb"singlecard-engine ([0-9]{1,9}) blake3=([0-9a-f]{64}) hmac-sha256=([0-9a-f]{64}|none)"
)

#: TensorRT-RTX 1.7.1.116: a plan starts with 64 bytes (a magic word, the number of sections, the
#: length of all), and 24 bytes for each section (name, place, length). 575 plans built here had
#: these two sections and no other; each of ``plugins_to_serialize`` is a section ``NGLP``.
_HEADER, _SECTION, _MAGIC = 64, 24, b"vtrt\0\0\0\0"
_COUNTS = struct.Struct("<8sQQ")
_SECTIONS = {b"NGNE\0\0\0\0", b"THGW\0\0\0\0"}
_LIBRARY = b"NGLP\0\0\0\0"
_MOST_SECTIONS = 64

#: Bytes at the beginning of a plan that say what it carries.
HEAD = _HEADER + _SECTION * _MOST_SECTIONS


class Refused(Exception):
    """An engine that is not loaded. The message goes on where the file's name ends.

    Attributes:
        kind: ``damaged``, ``unsigned``, ``signature``, ``newer``, ``report`` or ``code``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def read_key(path: Path) -> bytes:
    """Return the secret in a key file, without the white space around it.

    Raises:
        OptionError: it is missing, empty, too short or too long, or others may read or write it.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(LONGEST_KEY + 1)
    except OSError as error:
        raise OptionError(
            f"the signing key {path} cannot be read: {error.strerror or error}. Give signing_key "
            f"or SINGLECARD_SIGNING_KEY the path of a key file; {_MAKE_KEY}"
        ) from error
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise OptionError(
            f"the signing key {path} has mode {stat.S_IMODE(status.st_mode):o}, so others can read "
            f"or replace it: run 'chmod 600' on it, or {_MAKE_KEY}"
        )
    if len(content) > LONGEST_KEY:
        raise OptionError(
            f"the signing key {path} has more than {LONGEST_KEY} bytes, which no key has: "
            f"{_MAKE_KEY}"
        )
    key = content.strip()
    if len(key) < SHORTEST_KEY:
        found = f"has {len(key)} bytes instead of {SHORTEST_KEY} or more" if key else "is empty"
        raise OptionError(f"the signing key {path} {found}: {_MAKE_KEY}")
    return key


def key_id(key: bytes) -> str:
    """Return a name for a key that tells nothing of it."""
    return hmac.new(key, b"singlecard key name", hashlib.sha256).hexdigest()[:16]


def seal(facts: Mapping[str, Any], key: bytes | None) -> bytes:
    """Return a manifest as it lies on a remote: sealed, and with a key, signed."""
    body = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    signature = _signature(body, key) if key is not None else "none"
    checksum = blake3.blake3(body).hexdigest()
    return f"singlecard-engine {FORMAT} blake3={checksum} hmac-sha256={signature}\n".encode() + body


def unseal(content: bytes, key: bytes | None) -> dict[str, Any]:
    """Return the facts of a manifest from a remote.

    Raises:
        Refused: it is damaged, of a newer release, or, with a key, not signed with that.
    """
    line, _, body = content.partition(b"\n")
    known = _FORMAT.match(content)
    if known and int(known[1]) > FORMAT:
        raise Refused(
            "newer",
            f"has format {int(known[1])}, of a newer singlecard than this one, which reads "
            f"{FORMAT}: upgrade singlecard, or give remote_cache another folder",
        )
    found = _SEAL.fullmatch(line)
    if not found or int(found[1]) != FORMAT:
        raise damaged("it does not start with a seal")
    checksum, signature = found[2].decode(), found[3].decode()
    if checksum != blake3.blake3(body).hexdigest():
        raise damaged("its checksum differs")
    if key is not None:
        _check_signature(body, signature, key)
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise damaged(f"it is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise damaged("it is not an object")
    return facts


def damaged(why: str) -> Refused:
    """Return the refusal of a file that is not what was sent."""
    return Refused(
        "damaged",
        f"is damaged ({why}). The engine is built here, and replaces it where this process may "
        "write; otherwise have the file removed",
    )


def _signature(body: bytes, key: bytes) -> str:
    """Sign the format and all facts; among those are the engine's digest, and its plan's."""
    message = b"singlecard-engine %d\n%b" % (FORMAT, body)
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _check_signature(body: bytes, signature: str, key: bytes) -> None:
    cure = (
        "The engine is not loaded, and built here. Have all who build for this folder use the same "
        "signing_key (SINGLECARD_SIGNING_KEY), or give remote_cache a folder of its own"
    )
    if signature == "none":
        raise Refused("unsigned", f"is not signed, and a signing key is set. {cure}")
    if not hmac.compare_digest(signature, _signature(body, key)):
        raise Refused("signature", f"has a wrong signature: of another key, or forged. {cure}")


def check_plan(plan: Path) -> None:
    """Refuse a plan that carries more than an engine and its weights.

    TensorRT-RTX loads plugin libraries that a plan carries while it deserializes the plan, and so
    runs their code, whatever ``Runtime.engine_host_code_allowed`` says (measured with 1.7.1.116).

    Raises:
        Refused: it carries a plugin library or something unknown, or is no plan of TensorRT-RTX.
        OSError: it cannot be read.
    """
    with plan.open("rb") as file:
        check_head(file.read(HEAD), os.fstat(file.fileno()).st_size)


def is_of_rtx(head: bytes) -> bool:
    """Tell whether bytes are the beginning of a plan of TensorRT-RTX."""
    return len(head) >= _HEADER and head.startswith(_MAGIC)


def stated_length(head: bytes) -> int | None:
    """Return the bytes that a plan of TensorRT-RTX says it has; None of another beginning."""
    if len(head) < _COUNTS.size or not head.startswith(_MAGIC):
        return None
    return int(_COUNTS.unpack_from(head)[2])


def check_head(head: bytes, size: int) -> None:
    """Do what `check_plan` does, by the first `HEAD` bytes of a plan and its size.

    Raises:
        Refused: see `check_plan`.
    """
    if not is_of_rtx(head):
        raise Refused("code", "is no plan of TensorRT-RTX, so what it carries is not known")
    _, count, length = _COUNTS.unpack_from(head)
    if length != size:
        raise Refused("code", f"says that it has {length} bytes, and has {size}")
    places = (_HEADER + _SECTION * at for at in range(min(count, _MOST_SECTIONS)))
    names = {head[place : place + 8] for place in places}
    if _LIBRARY in names:
        raise Refused("code", "carries a plugin library, whose code would run as it is loaded")
    if not 1 <= count <= _MOST_SECTIONS or names - _SECTIONS:
        raise Refused("code", "carries something else than an engine and its weights")
