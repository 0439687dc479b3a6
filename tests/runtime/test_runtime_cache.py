"""Kernels that were compiled on the card are kept, by all processes together."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from singlecard.engine.merged_file import MergedFile
from singlecard.engine.shelf import Shelf
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.runtime.runtime_cache import KernelFile, kernels_name
from tests.runtime.engines import doubling, runner
from tests.runtime.stand_in import IRuntimeCache, Machine


def _files(machine: Machine) -> list[Path]:
    return sorted(machine.folder.glob("*/kernels.*"))


def _cache(machine: Machine, *kernels: str) -> IRuntimeCache:
    cache = IRuntimeCache(machine)
    cache._kernels.update(kernels)
    return cache


def _kept(machine: Machine, file: KernelFile) -> set[str]:
    cache = _cache(machine)
    KernelFile(file.path).load(cache)
    return cache._kernels


@pytest.fixture
def file(tmp_path: Path) -> KernelFile:
    return KernelFile(tmp_path / "kernels.bin")


def test_the_next_process_compiles_nothing(machine: Machine) -> None:
    """The JIT takes seconds at every start."""
    spec = doubling(kernels=("gemm", "relu"))
    plan = None
    for compiled in (2, 2):
        run = runner(machine, spec, held=machine)
        run.plan = plan = plan or run.plan
        run([machine.tensor(torch.randn(2, 3))])
        assert machine.compiled == compiled
        assert len(_files(machine)) == 1  # after the first call, in case the process is killed
        del run
        gc.collect()
    assert _files(machine)[0].parent == plan.parent
    assert "nvidia-stand-in-4090.cuda13." in _files(machine)[0].name


def test_all_streams_share_the_kernels(machine: Machine) -> None:
    """Each stream would compile them again."""
    run = runner(machine, doubling(kernels=("gemm",)), held=machine)
    for stream in (0, 1, 2):
        with machine.card.on(stream):
            run([machine.tensor(torch.randn(2, 3))])
    assert machine.compiled == 1


def test_kernels_that_came_late_are_kept_when_the_engine_goes(machine: Machine) -> None:
    """Kernels for shapes are compiled behind the calls, and would be compiled again."""
    spec = doubling(kernels=("gemm",))
    run = runner(machine, spec, held=machine)
    run([machine.tensor(torch.randn(2, 3))])
    (context,) = machine.contexts
    context._cache()._kernels.add("late")
    del context, run
    gc.collect()
    assert _kept(machine, KernelFile(_files(machine)[0])) == {"gemm", "late"}


def test_kernels_of_a_plan_that_lies_elsewhere_are_kept(machine: Machine, tmp_path: Path) -> None:
    """An artifact's engines would be compiled anew in each process."""
    folder, digest = tmp_path / "engines", "5" * 64
    folder.mkdir()
    for _ in range(2):
        run = runner(machine, doubling(kernels=("gemm",)), kernels=lambda: (folder, digest))
        run([machine.tensor(torch.randn(2, 3))])
        del run
        gc.collect()
    assert machine.compiled == 1
    (kept,) = [path.name for path in folder.iterdir() if path.suffix == ".bin"]
    assert kept.startswith(f"kernels.{digest}.nvidia-stand-in-4090.cuda13.")
    assert Shelf(folder).clear() == 0 and not list(folder.iterdir())


@pytest.mark.parametrize(
    "settings, held",
    [(RuntimeSettings(keep_kernels=False), True), (RuntimeSettings(), False)],
    ids=["by choice", "no cache entry"],
)
def test_nothing_is_written_where_nothing_is_kept(
    machine: Machine, settings: RuntimeSettings, held: bool
) -> None:
    """Files would appear beside plans that are the user's own."""
    run = runner(machine, doubling(kernels=("gemm",)), settings, held=machine if held else None)
    run([machine.tensor(torch.randn(2, 3))])
    del run
    gc.collect()
    assert not _files(machine)


def test_processes_do_not_lose_each_others_kernels(machine: Machine, file: KernelFile) -> None:
    """Whoever saves last would take the others' kernels away."""
    first, second = KernelFile(file.path), KernelFile(file.path)
    one, other = _cache(machine), _cache(machine)
    first.load(one)
    second.load(other)
    one._kernels.add("a")
    other._kernels.add("b")
    first.save(one, lambda: _cache(machine))
    second.save(other, lambda: _cache(machine))
    assert _kept(machine, file) == {"a", "b"}


def test_a_file_never_gets_smaller(machine: Machine, file: KernelFile) -> None:
    """Nobody says whether a cache can be filled twice: where it cannot, most kernels stay."""
    machine.cache_adds = False
    file.save(_cache(machine, "a", "b", "c"), lambda: _cache(machine))
    KernelFile(file.path).save(_cache(machine, "d"), lambda: _cache(machine))
    assert _kept(machine, file) == {"a", "b", "c"}
    KernelFile(file.path).save(_cache(machine, *"defgh"), lambda: _cache(machine))
    assert _kept(machine, file) == set("defgh")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"a\nb"],
    ids=["cut", "longer", "empty", "another format"],
)
def test_a_damaged_file_is_ignored_and_replaced(
    machine: Machine, file: KernelFile, damage: Callable[[bytes], bytes]
) -> None:
    """TensorRT would be given bytes that nobody wrote."""
    file.save(_cache(machine, "a"), lambda: _cache(machine))
    file.path.write_bytes(damage(file.path.read_bytes()))
    machine.calls.clear()
    assert _kept(machine, file) == set()
    assert not machine.calls
    KernelFile(file.path).save(_cache(machine, "b"), lambda: _cache(machine))
    assert _kept(machine, file) == {"b"}


def test_a_file_of_another_card_is_a_miss_and_is_replaced(
    machine: Machine, file: KernelFile
) -> None:
    """A driver that was set back would keep kernels from ever being kept."""
    file.save(_cache(machine, "other card", "a", "b"), lambda: _cache(machine))
    cache = _cache(machine)
    again = KernelFile(file.path)
    again.load(cache)
    assert not cache._kernels
    cache._kernels.add("c")
    again.save(cache, lambda: _cache(machine))
    assert _kept(machine, file) == {"c"}


def test_nothing_is_written_twice(machine: Machine, file: KernelFile) -> None:
    """A cache of a hundred megabytes would be written at each exit."""
    file.save(_cache(machine, "a"), lambda: _cache(machine))
    before = file.path.stat()
    file.save(_cache(machine, "a"), lambda: _cache(machine))
    again = KernelFile(file.path)
    cache = _cache(machine)
    again.load(cache)
    again.save(cache, lambda: _cache(machine))
    after = file.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_folder_that_cannot_be_written_costs_the_kernels_alone(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk would take a running model down."""
    KernelFile(tmp_path / "gone" / "kernels.bin").save(
        _cache(machine, "a"), lambda: _cache(machine)
    )
    assert not (tmp_path / "gone").exists()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    file = KernelFile(tmp_path / "kernels.bin")
    file.save(_cache(machine, "a"), lambda: _cache(machine))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_the_users_alone(machine: Machine, file: KernelFile) -> None:
    """Kernels are code that runs on the card."""
    file.save(_cache(machine, "a"), lambda: _cache(machine))
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_cards_drivers_and_versions_have_files_of_their_own() -> None:
    """Two cards in one machine would replace each other's kernels at each start."""
    names = {
        kernels_name("NVIDIA GeForce RTX 4090", 13, "1.7.1"),
        kernels_name("NVIDIA L4", 13, "1.7.1"),
        kernels_name("NVIDIA L4", 12, "1.7.1"),
        kernels_name("NVIDIA L4", 13, "1.8.0"),
    }
    assert len(names) == 4 and all("/" not in name and " " not in name for name in names)


_PROCESS = """
import sys
from pathlib import Path
import torch
from singlecard.network import executing, flavour
from singlecard.runtime import engine
from tests.runtime.engines import doubling, runner
from tests.runtime.stand_in import Machine

machine = Machine(Path(sys.argv[1]))
flavour.tensorrt = lambda: machine.library
executing.card_of = engine.card_of = lambda device: machine.card
run = runner(machine, doubling(kernels=("gemm",)), held=machine)
run([machine.tensor(torch.randn(2, 3))])
(context,) = machine.contexts
context._cache()._kernels.add("late")
"""


def test_kernels_are_kept_when_the_process_ends(machine: Machine, tmp_path: Path) -> None:
    """Most processes never let go of an engine: what was compiled behind calls would be lost."""
    folder = tmp_path / "other"
    folder.mkdir()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", _PROCESS, str(folder)], cwd=root, check=True)
    (file,) = folder.rglob("kernels.*.bin")
    assert _kept(machine, KernelFile(file)) == {"gemm", "late"}


def test_an_engine_that_goes_while_another_writes_the_same_file_does_not_wait(
    file: KernelFile,
) -> None:
    """The garbage collector may run its end in the thread that has the lock, and hang for ever."""
    merging = MergedFile(file.path, b"kernels", "kernels", logging.getLogger())
    inner: list[bool] = []

    def merged(present: bytes) -> bytes:
        inner.append(merging.merge(lambda present: b"of the one that goes"))
        return b"of the other"

    thread = threading.Thread(target=lambda: merging.merge(merged), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert inner == [False] and merging.read() == b"of the other"
