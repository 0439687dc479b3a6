"""Converted weights of a large model lie where memory can be taken back from them."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from singlecard.capture.spill import Spill
from tests.maps import anonymous_memory, file_at

MEGABYTE = 1 << 20


def large() -> torch.Tensor:
    return torch.randn(2, MEGABYTE // 4).half()


def test_what_is_beyond_the_room_lies_in_a_file(tmp_path: Path) -> None:
    """A model larger than half of memory would be killed while its weights are converted."""
    spill = Spill(tmp_path, in_memory=MEGABYTE)
    first, second = large(), large()
    assert spill.hold(first) is first
    held = spill.hold(second)
    assert held.equal(second)
    assert file_at(held.data_ptr()).startswith(str(tmp_path))
    assert file_at(second.data_ptr()) == ""


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    """A cache folder would fill with files that nobody needs, or the disk with ones nobody sees."""
    held = Spill(tmp_path / "cache", in_memory=0).hold(large())
    address = held.data_ptr()
    assert file_at(address)
    assert os.listdir(tmp_path / "cache") == []
    del held
    gc.collect()
    assert file_at(address) == ""


@pytest.mark.parametrize(
    "value",
    [
        large().t(),
        torch.randn(1, 4, 1, MEGABYTE // 8).expand(3, -1, 5, -1),
        torch.randn(MEGABYTE)[7:].view(torch.int16)[::2],
        torch.randint(-8, 8, (MEGABYTE,), dtype=torch.int8),
        torch.randn(MEGABYTE // 4, dtype=torch.complex64),
    ],
    ids=["transposed", "expanded", "sliced", "int8", "complex"],
)
def test_values_and_strides_stay(value: torch.Tensor, tmp_path: Path) -> None:
    """An engine would be built from other weights than the model's."""
    held = Spill(tmp_path, in_memory=0).hold(value)
    assert file_at(held.data_ptr())
    assert held.equal(value)
    assert (held.stride(), held.dtype) == (value.stride(), value.dtype)


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(1024, 1024).t(),
        torch.randn(8, 4, 256, 256).to(memory_format=torch.channels_last),
        torch.randn(1024, 2048)[:, ::2],
        torch.randn(1024, 1).expand(-1, 1024),
    ],
    ids=["transposed", "channels last", "sliced", "expanded"],
)
def test_converted_weights_are_those_of_pytorch(value: torch.Tensor, tmp_path: Path) -> None:
    """An engine would be built from other weights than the model's."""
    held = Spill(tmp_path, in_memory=0).convert(value, torch.float16)
    expected = torch.ops.aten._to_copy(value, dtype=torch.float16)
    assert file_at(held.data_ptr())
    assert held.equal(expected)
    assert held.stride() == expected.stride()


def test_what_is_in_memory_is_a_copy(tmp_path: Path) -> None:
    """A weight that needs no conversion would be changed with the constant that is made of it."""
    value = large()
    for in_memory in (0, 1 << 30):
        held = Spill(tmp_path, in_memory=in_memory).convert(value, value.dtype)
        assert held.equal(value)
        assert held.data_ptr() != value.data_ptr()


def test_conversions_leave_no_memory_behind(tmp_path: Path) -> None:
    """What one weight after another is converted in would stay with the process, and add up."""
    spill, value = Spill(tmp_path, in_memory=0), torch.randn(2 * MEGABYTE)
    spill.convert(value, torch.float16)
    before = anonymous_memory()
    held = [spill.convert(value, torch.float16) for _ in range(64)]
    assert anonymous_memory() - before < 8 * value.nbytes
    assert len(held) == 64


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(MEGABYTE // 4, dtype=torch.complex64).conj(),
        torch.randn(MEGABYTE, device="meta"),
        torch.randn(1024),
    ],
    ids=["conjugate", "meta", "small"],
)
def test_what_cannot_or_need_not_move_stays(value: torch.Tensor, tmp_path: Path) -> None:
    """A conjugate would lose its sign, and thousands of small tensors a mapping each."""
    assert Spill(tmp_path, in_memory=0).hold(value) is value


def test_a_full_disk_leaves_weights_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that would fit into memory would fail, or die of a page without a place on disk."""
    tries = []

    def full(*given: int) -> None:
        tries.append(given)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    spill, value = Spill(tmp_path, in_memory=0), large()
    assert spill.hold(value) is value
    assert spill.hold(value) is value
    assert len(tries) == 1


def test_room_is_left_for_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of the disk would go to converted weights, and the engine could not be written."""
    value = large()
    left = SimpleNamespace(f_bavail=value.nbytes - 1, f_frsize=1)
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: left)
    assert Spill(tmp_path, in_memory=0).hold(value) is value


def test_a_folder_that_cannot_be_made_leaves_weights_in_memory(tmp_path: Path) -> None:
    """A cache folder that cannot be written to would stop a build that needs no file."""
    (tmp_path / "file").write_text("")
    value = large()
    assert Spill(tmp_path / "file" / "cache", in_memory=0).hold(value) is value


def test_constants_that_are_soon_gone_take_no_room_of_others(tmp_path: Path) -> None:
    """Dozens of trials would count as files that are on the disk together."""
    spill = Spill(tmp_path, in_memory=MEGABYTE)
    assert spill.hold(large()) is not None
    value, other = large(), large()
    assert spill.fresh().hold(value) is value
    assert spill.hold(other) is not other
