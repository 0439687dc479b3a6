"""A miss says which parts of its key the nearest entry does not share."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from singlecard.engine.build import get_engine, key_digest, key_parts
from singlecard.engine.cache import MANIFEST, PLAN, Cache
from singlecard.engine.nearest import (
    differences,
    miss_reason,
    nearest_of,
    read_key,
    recent_keys,
)
from singlecard.errors import BuildError
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings
from singlecard.network.net import Net
from singlecard.observe import counters

KEY = {
    "network": "n",
    "network.inputs": "float32[2,8]",
    "network.structure": "s",
    "network.weights": "w",
    "network.outputs": "float32[2,4]",
    "profiles": "{}",
    "flavour": "tensorrt_rtx",
    "version": "1.7",
    "targets": "sm89",
    "tf32": "False",
}


def names(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    return [item.part for item in differences(here, there)]


def test_parts_are_named_without_the_whole() -> None:
    """``network`` differs whenever one of its parts does: to name it too would say nothing."""
    assert names(KEY, KEY) == []
    assert names(KEY, {**KEY, "network": "m", "network.weights": "v"}) == ["weights"]
    assert names(KEY, {**KEY, "targets": "sm86"}) == ["targets"]


def test_a_network_whose_parts_are_equal_is_named_as_a_whole() -> None:
    """The digest decides: a difference that no part explains must not look like none."""
    assert names(KEY, {**KEY, "network": "m"}) == ["network"]


def test_keys_of_other_releases_are_compared_by_what_they_have() -> None:
    """An entry may have been made before a part had a name, or after others were added."""
    old = {name: value for name, value in KEY.items() if "." not in name}
    assert names(KEY, old) == []
    assert names(KEY, {**old, "network": "m"}) == ["network"]
    (added,) = differences(KEY, {**KEY, "streaming": "True"})
    assert (added.part, added.here, added.there) == ("streaming", "not told", "True")


def test_the_same_model_is_nearer_than_the_same_settings() -> None:
    """Of a model built for another card by another release one wants to know just that."""
    stranger = {**KEY, "network": "m", "network.structure": "t", "network.weights": "v"}
    own = {**KEY, "targets": "sm86", "version": "1.6", "flavour": "tensorrt", "tf32": "True"}
    nearest = nearest_of(KEY, [("a" * 64, stranger), ("b" * 64, own)])
    assert nearest is not None and nearest.digest == "b" * 64
    assert nearest.sentence == (
        "flavour, version, targets and tf32 differ from the nearest entry bbbbbbbbbbbb"
    )


def test_of_equals_the_last_used_is_nearest() -> None:
    """What was used a minute ago is what the person means."""
    others = [(letter * 64, {**KEY, "targets": f"sm{letter}"}) for letter in "ab"]
    nearest = nearest_of(KEY, others)
    assert nearest is not None and nearest.digest == "a" * 64
    assert nearest_of(KEY, []) is None


def store(cache: Cache, digest: str, key: Any, used: int) -> None:
    def write(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(b"plan")
        return {"key": key, "build_seconds": 0.5, "report": {"key": {"network": "in a report"}}}

    entry = cache.store(digest, write)
    os.utime(entry.folder, (used, used))


def test_keys_are_read_last_used_first(tmp_path: Path) -> None:
    """Of thousands of entries some hundred are looked at: they must be the right ones."""
    cache = Cache(tmp_path)
    for place, letter in enumerate("abc"):
        store(cache, letter * 64, {**KEY, "targets": letter}, used=1000 + place)
    assert [key["targets"] for _, key in recent_keys(cache)] == ["c", "b", "a"]
    assert [digest[0] for digest, _ in recent_keys(cache, 2)] == ["c", "b"]
    assert read_key(cache, "a" * 64) == {**KEY, "targets": "a"}


@pytest.mark.parametrize("content", ["", "{", '{"key": 3}', '{"key": {"network": 4}}', "\udcff"])
def test_a_manifest_that_is_none_is_passed_over(tmp_path: Path, content: str) -> None:
    """An explanation must not fail for an entry that is damaged."""
    cache = Cache(tmp_path)
    store(cache, "a" * 64, KEY, used=1)
    store(cache, "b" * 64, KEY, used=2)
    path = cache.path("b" * 64) / MANIFEST
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert [digest[0] for digest, _ in recent_keys(cache)] == ["a"]
    assert read_key(cache, "b" * 64) is None


def test_no_folder_and_no_entry(tmp_path: Path) -> None:
    """The first start of all is a miss too, and makes nothing by asking."""
    cache = Cache(tmp_path / "none")
    assert miss_reason(KEY, cache) == "the cache is empty"
    assert not cache.folder.exists()


def small(factor: float = 2.0, size: int = 4) -> Lowered:
    net = Net()
    x = net.input("input_0", torch.float32, (size, 4))
    net.mark_output(net.matmul(x, net.constant(torch.full((4, 4), factor))), "output_0")
    return Lowered(net, (), (), {}, {}, {})


def test_a_run_tells_hits_and_misses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A start that takes minutes although everything was built: the log must say why."""
    cache, before = Cache(tmp_path), counters()
    with caplog.at_level(logging.INFO, "singlecard"):
        first = get_engine(small(), BuildSettings(("sm89",)), cache)
        get_engine(small(3.0), BuildSettings(("sm86",)), cache)
        get_engine(small(), BuildSettings(("sm89",)), cache)
    told = [(item.name, item.getMessage()) for item in caplog.records if item.levelname == "INFO"]
    shown, size = first.digest[:12], first.plan.stat().st_size
    assert told[0] == ("singlecard.cache", f"miss {shown}: the cache is empty")
    assert told[1][0] == "singlecard.build" and told[1][1].startswith(f"built {shown} in ")
    second = told[2][1].split()[1]
    reason = f"weights and targets differ from the nearest entry {shown}"
    assert told[2] == ("singlecard.cache", f"miss {second} {reason}")
    assert told[-1][0] == "singlecard.cache" and told[-1][1].startswith(f"hit {shown}: ")
    counted = counters() - before
    assert (counted.hits, counted.misses, counted.builds) == (1, 2, 2)
    assert counted.bytes_read == size < counted.bytes_written and counted.build_seconds > 0


def test_a_damaged_entry_is_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of the model changed: a person should look at the disk, not at the model."""
    cache, settings = Cache(tmp_path), BuildSettings(("sm89",))
    first = get_engine(small(), settings, cache)
    content = bytearray(first.plan.read_bytes())
    content[-1] ^= 1
    first.plan.write_bytes(content)
    caplog.clear()
    with caplog.at_level(logging.INFO, "singlecard.cache"):
        assert get_engine(small(), settings, cache).built
    (line,) = [text for text in caplog.messages if text.startswith("miss")]
    assert "damaged" in line and "checksum" in line


def test_nobody_listens_and_nothing_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason of a miss costs a look at hundreds of files: only where somebody reads it."""
    caplog.set_level(logging.WARNING, "singlecard.cache")
    monkeypatch.setattr("singlecard.engine.build.miss_reason", None)
    assert get_engine(small(), BuildSettings(("sm89",)), Cache(tmp_path)).built


def test_a_build_that_waited_for_another_is_a_hit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight workers start together: one builds, and seven tell that they waited for it."""
    settings, built = BuildSettings(("sm89",)), Cache(tmp_path)
    before = counters()

    class Late(Cache):
        """A cache in which somebody else builds the engine just before we may."""

        def lock(self, digest: str) -> Any:
            get_engine(small(), settings, built)
            return super().lock(digest)

    caplog.set_level(logging.INFO, "singlecard.cache")
    assert not get_engine(small(), settings, Late(tmp_path)).built
    assert "built elsewhere while this waited" in caplog.messages[-1]
    counted = counters() - before
    assert (counted.hits, counted.waits, counted.misses, counted.builds) == (1, 1, 1, 1)


def test_a_network_that_does_not_build_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that TensorRT refuses costs time at every start: it should be seen."""

    def refuses(*_: Any) -> None:
        raise BuildError("TensorRT could not build the network: no implementation")

    monkeypatch.setattr("singlecard.engine.build.build_plan", refuses)
    caplog.set_level(logging.INFO, "singlecard.build")
    before = counters()
    settings = BuildSettings(("sm89",))
    with pytest.raises(BuildError):
        get_engine(small(), settings, Cache(tmp_path))
    counted = counters() - before
    assert (counted.build_failures, counted.builds, counted.bytes_written) == (1, 0, 0)
    shown = key_digest(key_parts(small(), settings))[:12]
    assert caplog.messages[-1] == (
        f"not built {shown}: TensorRT could not build the network: no implementation"
    )
