"""What an engine from elsewhere must show: a seal, a signature, a plan that is only a plan."""

from __future__ import annotations

import json
import logging
import re
import stat
import struct
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest

from singlecard.engine import signing
from singlecard.engine.signing import (
    FORMAT,
    LONGEST_KEY,
    Refused,
    check_plan,
    key_id,
    read_key,
    seal,
    unseal,
)
from singlecard.errors import OptionError
from singlecard.network.flavour import tensorrt
from singlecard.network.logger import Messages, new_logger
from singlecard.network.versions import new_builder, new_runtime

KEY, OTHER = b"k" * 32, b"o" * 32
FACTS = {"digest": "a" * 64, "plan_bytes": 3, "report": {"kernels": [], "floor": 0.1}}


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [KEY, KEY + b"\n", b" " + KEY + b"\r\n"])
def test_key_is_read_without_white_space(tmp_path: Path, content: bytes) -> None:
    """An editor's line end on one machine would make its engines strangers on the others."""
    assert read_key(key_file(tmp_path, content)) == KEY


@pytest.mark.parametrize("mode", [0o400, 0o640])
def test_key_of_a_group_or_read_only_is_taken(tmp_path: Path, mode: int) -> None:
    """Secrets that a cluster mounts are read-only, or belong to the service's group."""
    assert read_key(key_file(tmp_path, KEY, mode)) == KEY


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"", 0o600, "is empty"),
        (b" \n", 0o600, "is empty"),
        (b"short", 0o600, "has 5 bytes instead of 32 or more"),
        (b"k" * (LONGEST_KEY + 1), 0o600, f"more than {LONGEST_KEY} bytes"),
        (KEY, 0o644, "mode 644, so others can read or replace it: run 'chmod 600'"),
        (KEY, 0o620, "mode 620, so others can read or replace it"),
    ],
)
def test_bad_key_file_is_an_error(tmp_path: Path, content: bytes, mode: int, says: str) -> None:
    """A key that anybody can read or guess signs nothing; the error names the file and the way."""
    path = key_file(tmp_path, content, mode)
    with pytest.raises(OptionError, match=re.escape(says)) as caught:
        read_key(path)
    assert str(path) in str(caught.value) and "openssl rand" in str(caught.value)


def test_missing_key_file_is_an_error(tmp_path: Path) -> None:
    """A path that is wrong must not mean that nothing is checked."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(OptionError, match="cannot be read") as caught:
            read_key(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", [None, KEY])
def test_sealed_facts_come_back(key: bytes | None) -> None:
    """What was sent is what is read, signed or not; a signed one can be read without a key."""
    content = seal(FACTS, key)
    assert unseal(content, key) == FACTS and unseal(content, None) == FACTS


def refusal(content: bytes, key: bytes | None) -> Refused:
    with pytest.raises(Refused) as caught:
        unseal(content, key)
    return caught.value


def test_signature_of_another_key_is_refused() -> None:
    """Whoever may write to the folder could have engines loaded that nobody trusts."""
    error = refusal(seal(FACTS, OTHER), KEY)
    assert error.kind == "signature" and "SINGLECARD_SIGNING_KEY" in str(error)


def test_unsigned_is_refused_with_a_key() -> None:
    """Leaving the signature out must not be a way around it."""
    assert refusal(seal(FACTS, None), KEY).kind == "unsigned"


def resealed(content: bytes, **changes: Any) -> bytes:
    """Change facts as a forger would: with a right checksum, and the old signature."""
    line, _, body = content.partition(b"\n")
    body = json.dumps(json.loads(body) | changes).encode()
    checksum = blake3.blake3(body).hexdigest().encode()
    return re.sub(rb"blake3=\w+", b"blake3=" + checksum, line) + b"\n" + body


@pytest.mark.parametrize(
    "changes", [{"digest": "b" * 64}, {"plan_bytes": 4}, {"plan_digest": "0" * 64}, {"more": 1}]
)
def test_signature_covers_every_fact(changes: dict[str, Any]) -> None:
    """A signed manifest that can be pointed at another plan signs nothing."""
    forged = resealed(seal(FACTS, KEY), **changes)
    assert unseal(forged, None) == FACTS | changes  # only the signature tells
    assert refusal(forged, KEY).kind == "signature"


def test_signature_is_checked_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that is given whatever lies in a folder can be attacked by it."""

    def parse(*_: Any) -> None:
        raise AssertionError("parsed before it was checked")

    contents = [seal(FACTS, OTHER), seal(FACTS, None), resealed(seal(FACTS, KEY), more=1)]
    monkeypatch.setattr(json, "loads", parse)
    for content in contents:
        assert refusal(content, KEY).kind in ("signature", "unsigned")


@pytest.mark.parametrize("key", [None, KEY])
def test_every_changed_byte_is_seen(key: bytes | None) -> None:
    """A flipped bit anywhere in a manifest is seen, with a key and without."""
    content = seal(FACTS, key)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        if key is None and b"hmac" in content[:place] and place < content.index(b"\n"):
            continue  # the signature, which nobody asks for without a key
        assert refusal(bytes(changed), key).kind in ("damaged", "signature", "unsigned", "newer")
    for length in range(len(content)):
        assert refusal(content[:length], key).kind in ("damaged", "unsigned")


def test_newer_format_says_so() -> None:
    """Engines of a release to come are not damaged: the way out is an upgrade."""
    error = refusal(b"singlecard-engine 7 whatever comes then\n\x00\x01", KEY)
    assert error.kind == "newer"
    assert f"format 7, of a newer singlecard than this one, which reads {FORMAT}" in str(error)
    assert "upgrade singlecard" in str(error)


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1', b'{"a": 1} {"b": 2}']
)
def test_bodies_that_are_no_manifest(body: bytes) -> None:
    """Whatever lies there, the answer is a refusal and never another error."""
    line = f"singlecard-engine {FORMAT} blake3={blake3.blake3(body).hexdigest()} hmac-sha256=none"
    assert refusal(line.encode() + b"\n" + body, None).kind == "damaged"


def test_key_id_tells_keys_apart() -> None:
    """An engine checked with last year's key must not pass for one of this year's."""
    assert key_id(KEY) != key_id(OTHER) and KEY.hex() not in key_id(KEY)


def built_plan(libraries: list[str]) -> bytes:
    """Build a tiny network, with libraries in its plan."""
    trt: Any = tensorrt()
    messages = Messages()
    builder = new_builder(new_logger(messages), messages)
    network = builder.create_network(0)
    x = network.add_input("x", trt.float32, (4, 64))
    weights = np.ones((64, 64), np.float32)
    w = network.add_constant((64, 64), trt.Weights(weights)).get_output(0)
    none = trt.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(x, none, w, none).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    config.plugins_to_serialize = libraries
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture(scope="module")
def library() -> str:
    """Some shared library; TensorRT takes any into a plan."""
    return str(next(Path(blake3.__file__).parent.glob("*.so")))


@pytest.fixture(scope="module")
def with_library(library: str) -> bytes:
    return built_plan([library])


def code_refusal(folder: Path, content: bytes) -> str:
    path = folder / "engine.plan"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught:
        check_plan(path)
    assert caught.value.kind == "code"
    return str(caught.value)


def test_plan_with_a_plugin_library_is_refused(tmp_path: Path, with_library: bytes) -> None:
    """Loading it would run code that whoever wrote to the folder chose."""
    assert "carries a plugin library" in code_refusal(tmp_path, with_library)


def test_ordinary_plan_is_taken(tmp_path: Path) -> None:
    """A new TensorRT that lays plans out in another way would end all sharing unseen."""
    plan = tmp_path / "engine.plan"
    plan.write_bytes(built_plan([]))
    check_plan(plan)


def test_plan_of_another_kind_is_refused(tmp_path: Path, with_library: bytes) -> None:
    """A library must not hide behind a header that this code reads in another way."""
    plain = built_plan([])
    renamed = with_library.replace(b"NGLP", b"NEWS", 1)
    assert "something else" in code_refusal(tmp_path, renamed)
    many = plain[:8] + struct.pack("<Q", 1 << 40) + plain[16:]
    assert "something else" in code_refusal(tmp_path, many)
    none = plain[:8] + struct.pack("<Q", 0) + plain[16:]
    assert "something else" in code_refusal(tmp_path, none)
    assert "bytes, and has" in code_refusal(tmp_path, plain + b"more")
    for other in (b"", b"ftrt", b"ftrt" + plain[4:], plain[:63]):
        assert "no plan of TensorRT-RTX" in code_refusal(tmp_path, other)


def test_tensorrt_loads_a_plans_library_without_asking(
    with_library: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Why plans are looked into here: if TensorRT refused them itself, that could go.

    The library is no plugin: TensorRT has loaded it when it misses the function it looks for.
    """
    with caplog.at_level(logging.DEBUG, "singlecard.tensorrt"):
        runtime = new_runtime(new_logger(Messages()), Messages())
        assert runtime.engine_host_code_allowed is False
        assert runtime.deserialize_cuda_engine(with_library) is None
    assert "getCreators could not be loaded" in caplog.text


def test_a_plans_header_has_the_length_that_is_read() -> None:
    """The table of contents is looked for behind it."""
    assert new_runtime(new_logger(Messages()), Messages()).engine_header_size == signing._HEADER


def test_key_file_mode_is_what_is_checked(tmp_path: Path) -> None:
    """A link to a key is judged by the key's own mode."""
    path = key_file(tmp_path, KEY)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_key(link) == KEY
    path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IROTH)
    with pytest.raises(OptionError, match="others can read"):
        read_key(link)
