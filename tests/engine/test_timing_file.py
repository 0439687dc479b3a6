"""Timings that full TensorRT measured are kept beside the engines, by all processes together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from singlecard.engine import timing_file as room
from singlecard.engine.cache import Cache
from singlecard.engine.eviction import bytes_on_disk
from singlecard.engine.locking import take
from singlecard.engine.timing_file import TimingFile, timing_file
from tests.engine.stores import A, B, visible, writes

NAME = "timings.nvidia-l4.cuda13.10.13.0.35.bin"


def lines(present: bytes, own: bytes) -> bytes:
    """Merge as TensorRT does: what is there stays, what is new is added."""
    return b"\n".join(sorted({*present.split(b"\n"), *own.split(b"\n")}))


@pytest.fixture
def file(tmp_path: Path) -> TimingFile:
    return TimingFile(tmp_path / NAME)


def test_what_was_saved_is_loaded(file: TimingFile) -> None:
    """The next build would measure for minutes again."""
    assert file.load() == b""
    file.save(b"gemm", lines)
    file.save(b"conv", lines)
    assert file.load() == b"conv\ngemm"


def test_processes_do_not_lose_each_others_timings(file: TimingFile, tmp_path: Path) -> None:
    """Builds run in parallel: whoever saves last must not be the only one that saved."""

    def save_many(name: bytes) -> None:
        for at in range(20):
            file.save(b"%b %d" % (name, at), lines)

    other = multiprocessing.get_context("fork").Process(target=save_many, args=(b"second",))
    other.start()
    save_many(b"first")
    other.join()
    assert other.exitcode == 0
    wanted = {b"%b %d" % (name, at) for name in (b"first", b"second") for at in range(20)}
    assert set(file.load().split(b"\n")) == wanted
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"kernels"],
    ids=["cut", "longer", "empty", "another kind"],
)
def test_a_damaged_file_is_ignored_and_replaced(
    file: TimingFile, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """TensorRT would be given bytes that nobody wrote, or the build would end in an error."""
    file.save(b"gemm", lines)
    path = tmp_path / NAME
    path.write_bytes(damage(path.read_bytes()))
    assert file.load() == b""
    file.save(b"conv", lines)
    assert file.load() == b"conv"


def test_the_file_is_the_users_alone(file: TimingFile, tmp_path: Path) -> None:
    """It is read by native code: nobody else may write it."""
    file.save(b"gemm", lines)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_a_full_disk_costs_the_timings_alone(
    file: TimingFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that took minutes to build would be lost for a file that saves some."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    file.save(b"gemm", lines)
    assert list(tmp_path.iterdir()) == []


# Which file ----------------------------------------------------------------------------------


class Card:
    def __init__(self, name: str, driver: int) -> None:
        self.name, self.driver = name, driver


def test_cards_drivers_and_versions_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cards in one machine would replace each other's timings at each build."""
    monkeypatch.setattr(room, "measures_kernels", lambda: True)
    monkeypatch.setattr(room, "device_at_hand", lambda: torch.device("cuda", 0))
    made = [
        ("NVIDIA L4", 13, "10.13.0.35"),
        ("NVIDIA A10", 13, "10.13.0.35"),
        ("NVIDIA L4", 12, "10.13.0.35"),
        ("NVIDIA L4", 13, "11.0.0.114"),
    ]
    for name, driver, version in made:
        monkeypatch.setattr(room, "card_of", lambda device, n=name, d=driver: Card(n, d))
        monkeypatch.setattr(room, "flavour_version", lambda v=version: v)
        found = timing_file(tmp_path)
        assert found is not None
        found.save(f"{name}{driver}{version}".encode(), lines)
    assert len(list(tmp_path.iterdir())) == 4 and (tmp_path / NAME).exists()


def test_tensorrt_for_rtx_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It measures nothing while it builds: its calls would only warn."""
    monkeypatch.setattr(room, "device_at_hand", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(room, "card_of", lambda device: Card("NVIDIA L4", 13))
    assert timing_file(tmp_path) is None


def test_without_a_card_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words about the missing GPU come from the builder, not from the name of a file."""
    monkeypatch.setattr(room, "measures_kernels", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert timing_file(tmp_path) is None


# In the cache's folder -----------------------------------------------------------------------


def test_it_is_no_engine_and_goes_with_the_engines(cache: Cache) -> None:
    """A file that nobody knows would be listed as damaged, or stay for ever after a clear."""
    TimingFile(cache.engines / NAME).save(b"gemm", lines)
    assert {entry.digest for entry in cache.entries()} == {A, B}
    assert set(cache.verify()) == {A, B} and set(cache.verify().values()) == {None}
    assert len(cache.prune(0)) == 2 and visible(cache) == {NAME}
    assert cache.clear() == 0 and not cache.engines.exists()


def test_a_cache_that_is_full_keeps_it(cache: Cache) -> None:
    """Making room for an engine must not cost minutes at every build from then on."""
    TimingFile(cache.engines / NAME).save(b"gemm", lines)
    small = Cache(cache.folder, limit_bytes=bytes_on_disk(cache.path(A)))
    small.store("c" * 64, writes(b"x" * 1000))
    assert NAME in visible(small) and TimingFile(cache.engines / NAME).load() == b"gemm"


def test_what_a_killed_process_left_is_swept(cache: Cache) -> None:
    """Half a file, and its lock, would lie there for ever."""
    for end in ("tmp", "lock"):
        (cache.engines / f"{NAME}.{end}").touch()
    held = take(cache.engines / f"{NAME}.lock")
    cache.sweep()
    assert (cache.engines / f"{NAME}.tmp").exists()  # somebody is writing just now
    held.release()
    (cache.engines / f"{NAME}.lock").touch()
    cache.sweep()
    assert visible(cache) == {A, B}
