"""Engines of a network: of the cache, of a remote, or built; each machine asks in that order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import singlecard
from singlecard.engine.remote import RemoteTier
from singlecard.options import Options
from singlecard.report.verify import Compiled, compile_model

pytest.importorskip("fsspec")


def build(folder: Path, remote: Path, **more: str) -> Compiled:
    """Build a small model on a machine with its own cache, beside a shared folder."""
    torch.manual_seed(0)
    options = {"cache_dir": folder, "remote_cache": f"file://{remote}", "targets": "sm89", **more}
    return compile_model(
        nn.Linear(8, 8).eval(), (torch.ones(2, 8),), None, None, options, "eager", None
    )


def test_what_one_machine_builds_another_fetches(tmp_path: Path) -> None:
    """A fleet that builds the same engine on each machine waits as often."""
    before = singlecard.counters()
    (built,) = build(tmp_path / "one", tmp_path / "shared").engines
    (fetched,) = build(tmp_path / "two", tmp_path / "shared").engines
    (local,) = build(tmp_path / "two", tmp_path / "shared").engines
    assert (built.built, fetched.built, local.built) == (True, False, False)
    assert built.digest == fetched.digest == local.digest
    assert built.plan.read_bytes() == fetched.plan.read_bytes()
    counted = singlecard.counters() - before
    assert (counted.builds, counted.remote_uploads, counted.remote_hits, counted.hits) == (
        1,
        1,
        1,
        1,
    )


def test_never_takes_what_others_built(tmp_path: Path) -> None:
    """``never`` speaks of building: what CI put into the shared folder is there to be used."""
    build(tmp_path / "one", tmp_path / "shared")
    (fetched,) = build(tmp_path / "two", tmp_path / "shared", build="never").engines
    assert not fetched.built
    assert not build(tmp_path / "three", tmp_path / "empty", build="never").engines


def test_a_key_that_is_set_later_distrusts_what_came_unsigned(tmp_path: Path) -> None:
    """An engine is code that runs on the card: who sets a key means all of them."""
    build(tmp_path / "one", tmp_path / "shared")
    build(tmp_path / "two", tmp_path / "shared")
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    (rebuilt,) = build(tmp_path / "two", tmp_path / "other", signing_key=str(key)).engines
    assert rebuilt.built
    (own,) = build(tmp_path / "one", tmp_path / "other", signing_key=str(key)).engines
    assert not own.built  # it was built on this machine


def test_an_address_that_is_none_is_an_error_at_the_door(tmp_path: Path) -> None:
    """Ten minutes of building, to learn that the address has a slip."""
    with pytest.raises(singlecard.OptionError, match="remote_cache"):
        RemoteTier.of(Options.parse({"remote_cache": "shared/engines"}))
