"""What stands in an artifact's manifest, and what seals it."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import torch

from singlecard import __version__
from singlecard.engine.signing import key_id
from singlecard.network.flavour import flavour_name, flavour_version

#: Of artifacts. Each release reads this one alone.
FORMAT = 2

CALIBRATION, MODEL = "calibration.json", "model"


def engine_member(digest: str) -> str:
    return f"engines/{digest}.plan"


def program_member(number: int, folder: str = "eager") -> str:
    return f"{folder}/{number}.json"


def versions(engines: bool) -> dict[str, str]:
    """Return the versions that an artifact depends on; of TensorRT where there are engines."""
    found = {"singlecard": __version__, "torch": str(torch.__version__)}
    if engines:
        found |= {"flavour": flavour_name(), "tensorrt": flavour_version()}
    return found


def sign(manifest: bytes, key: bytes) -> bytes:
    """Return a signature of a manifest, whose checksums cover all that the artifact holds."""
    return json.dumps({"hmac-sha256": _mac(manifest, key), "key": key_id(key)}).encode()


def signature_refusal(manifest: bytes, signature: bytes | None, key: bytes) -> str:
    """Return why a manifest is not taken as signed with a key, or ''."""
    if signature is None:
        return "is not signed, and a signing key was given"
    try:
        found: dict[str, Any] = json.loads(signature)
        mac, name = str(found["hmac-sha256"]), str(found["key"])
    except (ValueError, KeyError, TypeError):
        return "has a signature that cannot be read"
    if hmac.compare_digest(mac.encode(), _mac(manifest, key).encode()):
        return ""
    if name != key_id(key):
        return f"is signed with another key ({name}, the key given is {key_id(key)})"
    return "was changed after it was signed"


def _mac(manifest: bytes, key: bytes) -> str:
    message = b"singlecard-artifact %d\n%b" % (FORMAT, manifest)
    return hmac.new(key, message, hashlib.sha256).hexdigest()
