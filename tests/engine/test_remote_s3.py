"""Sharing engines through a server that speaks S3 over HTTP."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from singlecard.engine.build import get_engine
from singlecard.engine.cache import PLAN, Cache, Entry
from singlecard.engine.remote import FAILURE_LIMIT, MANIFEST, RemoteTier
from singlecard.engine.signing import FORMAT, seal, unseal
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings
from singlecard.network.net import Net
from singlecard.options import Options

pytestmark = pytest.mark.slow

KEY, OTHER = b"k" * 32, b"o" * 32


def _serve(ready: Any) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    ready.put(server.get_host_and_port()[1])
    threading.Event().wait()


@dataclass
class Server:
    process: Any
    port: int


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with one bucket, which the environment leads to as it does in production."""
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=_serve, args=(ready,), daemon=True)
    process.start()
    try:
        port = ready.get(timeout=120)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.delenv("SINGLECARD_SIGNING_KEY", raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield Server(process, port)
    finally:
        process.kill()
        process.join(30)
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(server: Server, tmp_path: Path) -> str:
    """A folder in the bucket that no other test has: what failed is remembered by address."""
    return f"s3://bucket/{tmp_path.name}/shared"


@pytest.fixture
def built(tmp_path: Path) -> Entry:
    """An engine of 70 MB: more than one part of an upload, and more than one read."""
    cache = Cache(tmp_path / "here")
    net = Net()
    x = net.input("input_0", torch.float32, (4, 4096))
    weights = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    net.mark_output(net.matmul(x, net.constant(weights)), "output_0")
    lowered = Lowered(net, (), (), {}, {}, {})
    engine = get_engine(lowered, BuildSettings(("sm89",)), cache)
    entry = cache.find(engine.digest)
    assert entry is not None and entry.size > 60_000_000
    return entry


def tier_of(url: str, key: bytes | None = None) -> RemoteTier:
    tier = RemoteTier.of(Options.parse({"remote_cache": url}))
    assert tier is not None
    return RemoteTier(tier.url, key)


def files(url: str) -> list[str]:
    import s3fs

    return sorted(path.partition("/shared/")[2] for path in s3fs.S3FileSystem().find(url))


def test_round_trip(url: str, built: Entry, tmp_path: Path) -> None:
    """What one machine sent to a bucket is what another gets from it, byte for byte."""
    there = Cache(tmp_path / "there")
    tier = tier_of(url, KEY)
    assert tier.fetch(built.digest, there) is None
    tier.push(built)
    folder = f"v{FORMAT}/{built.digest[:2]}/{built.digest}"
    assert files(url) == [f"{folder}/{MANIFEST}", f"{folder}/{PLAN}"]
    entry = tier.fetch(built.digest, there)
    assert entry is not None and entry.plan.read_bytes() == built.plan.read_bytes()
    assert tier_of(url, OTHER).fetch(built.digest, Cache(tmp_path / "other")) is None


def test_what_is_there_is_not_sent_again(
    url: str, built: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each upload of gigabytes that are there already costs money and minutes."""
    import s3fs

    tier_of(url, KEY).push(built)

    def put(*_: Any, **__: Any) -> None:
        raise AssertionError("sent again")

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", put)
    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", put)
    before = files(url)
    tier_of(url, KEY).push(built)
    assert files(url) == before and tier_of(url, KEY)._attempt("", "", lambda: True)


def test_damage_in_the_bucket(url: str, built: Entry, tmp_path: Path) -> None:
    """A plan that was cut off, or a manifest for another key, is not loaded, and is repaired."""
    import s3fs

    tier, fs = tier_of(url, KEY), s3fs.S3FileSystem()
    tier.push(built)
    folder = f"{url}/v{FORMAT}/{built.digest[:2]}/{built.digest}"
    manifest = fs.cat_file(f"{folder}/{MANIFEST}")
    there = Cache(tmp_path / "there")
    fs.pipe_file(f"{folder}/{PLAN}", built.plan.read_bytes()[:-1])
    assert tier.fetch(built.digest, there) is None
    tier.push(built)
    fs.pipe_file(f"{folder}/{MANIFEST}", seal(unseal(manifest, None), OTHER))
    assert tier.fetch(built.digest, there) is None
    tier.push(built)
    assert there.entries() == []
    assert tier.fetch(built.digest, there) is not None


def test_bucket_that_is_missing(
    server: Server, built: Entry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A typing mistake in a bucket's name makes no bucket, and is told where one sends to it."""
    import s3fs

    tier = tier_of("s3://nobody-made-this/engines")
    assert tier.fetch(built.digest, Cache(tmp_path / "there")) is None
    tier.push(built)
    assert "bucket does not exist" in caplog.text
    assert not s3fs.S3FileSystem().exists("nobody-made-this")


def _fetch(url: str, digest: str, folder: Path, results: Any) -> None:
    results.put(RemoteTier(url).fetch(digest, Cache(folder)) is not None)


def test_forked_workers_fetch(url: str, built: Entry, tmp_path: Path) -> None:
    """Servers fork workers once they have loaded a model, and connections do not survive that."""
    tier_of(url).push(built)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [
        context.Process(target=_fetch, args=(url, built.digest, tmp_path / str(place), results))
        for place in range(2)
    ]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=120) for _ in workers] == [True, True]
    for worker in workers:
        worker.join(30)


def test_server_that_is_gone(
    server: Server, url: str, built: Entry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that went down costs a few attempts, and no run."""
    tier_of(url).push(built)
    server.process.kill()
    server.process.join(30)
    there = Cache(tmp_path / "there")
    for _ in range(FAILURE_LIMIT + 1):
        assert tier_of(url).fetch(built.digest, there) is None
    tier_of(url).push(built)
    assert caplog.text.count("cannot fetch from") == 1
    assert caplog.text.count("left alone until this process ends") == 1
    assert "cannot send to" not in caplog.text
