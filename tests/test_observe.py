"""What singlecard tells while it works: topics of its log, counters, one event for both."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from singlecard.errors import OptionError
from singlecard.observe import Counters, counters, events, set_logs
from singlecard.observe.counters import count
from singlecard.observe.topics import TOPICS, read_environment, topic
from singlecard.warning import SinglecardWarning, warn_once

DIGEST = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Levels, handlers and warnings are the process's own: leave them as they were."""
    log = logging.getLogger("singlecard")
    handlers, levels = list(log.handlers), {name: topic(name).level for name in TOPICS}
    log.handlers.clear()
    yield
    log.handlers[:] = handlers
    for name, level in levels.items():
        topic(name).setLevel(level)
    warn_once.cache_clear()


def levels() -> dict[str, int]:
    return {name: topic(name).level for name in TOPICS if topic(name).level}


def test_levels_are_set_by_topic() -> None:
    """Somebody who asks why the cache misses does not want the builder's ten thousand lines."""
    set_logs(cache=logging.DEBUG, build=logging.INFO)
    assert levels() == {"cache": logging.DEBUG, "build": logging.INFO}
    set_logs(all=logging.ERROR, cache=logging.INFO)
    assert levels() == dict.fromkeys(TOPICS, logging.ERROR) | {"cache": logging.INFO}
    set_logs(all=None)
    assert levels() == {}


def test_an_unknown_topic_is_refused_before_any_is_set() -> None:
    """A misspelt topic would be silent, and taken for nothing to tell."""
    with pytest.raises(OptionError, match="no topic 'cahce': did you mean 'cache'") as caught:
        set_logs(build=logging.INFO, cahce=logging.DEBUG)
    assert all(name in str(caught.value) for name in TOPICS)
    wrong: list[Any] = [True, "debug", 1.5]
    for level in wrong:
        with pytest.raises(OptionError, match="level of logging"):
            set_logs(build=level)
    assert levels() == {}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {}),
        ("cache", {"cache": logging.INFO}),
        (
            "cache,+build,-runtime",
            {"cache": logging.INFO, "build": logging.DEBUG, "runtime": logging.ERROR},
        ),
        (" +cache , build,, ", {"cache": logging.DEBUG, "build": logging.INFO}),
        ("-all,cache", dict.fromkeys(TOPICS, logging.ERROR) | {"cache": logging.INFO}),
        ("cache,-all", dict.fromkeys(TOPICS, logging.ERROR) | {"cache": logging.INFO}),
    ],
)
def test_the_variable_chooses_topics(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: dict[str, int]
) -> None:
    """In production one sets a variable, and changes no code."""
    monkeypatch.setenv("SINGLECARD_LOGS", given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_environment()
    assert levels() == expected


@pytest.mark.parametrize("given", ["cahce", "+cahce", "+", "cache;build", "CACHE"])
def test_a_variable_that_names_no_topic_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Neither a program that does not start nor a variable that does nothing without a word."""
    monkeypatch.setenv("SINGLECARD_LOGS", f"{given},build")
    with pytest.warns(SinglecardWarning, match="which is no topic") as told:
        read_environment()
    assert all(name in str(told[0].message) for name in TOPICS)
    assert levels() == {"build": logging.INFO}


def shown_by(monkeypatch: pytest.MonkeyPatch, root: list[logging.Handler]) -> list[str]:
    """Lines that our handler writes while the root logger has some handlers."""
    lines: list[str] = []

    class Stream:
        def write(self, text: str) -> None:
            lines.append(text)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stderr", Stream())
    monkeypatch.setattr(logging.getLogger(), "handlers", root)
    set_logs(cache=logging.INFO)
    set_logs(cache=logging.INFO)  # a second call adds no second handler
    events.record_hit(DIGEST, 1500)
    return lines


def test_lines_are_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a log of its own sees them; one with a log sees each line one time."""
    (line,) = shown_by(monkeypatch, [])
    assert line.endswith("singlecard.cache: hit 0123456789ab: 1.5 kB\n")
    logging.getLogger("singlecard").handlers.clear()
    assert shown_by(monkeypatch, [logging.NullHandler()]) == []


def test_reading_the_variable_in_a_new_process() -> None:
    """The root logger belongs to the program, and without the variable nothing is attached."""
    code = (
        "import logging\n"
        "from singlecard.observe.topics import read_environment\n"
        "read_environment()\n"
        "from singlecard.observe import events\n"
        "events.record_hit('ab' * 32, 10)\n"
        "log = logging.getLogger('singlecard')\n"
        "print(len(logging.getLogger().handlers), len(log.handlers), log.level)\n"
    )
    for given, handlers, said in (("", 0, ""), ("cache", 1, "hit abababababab: 10 B")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"SINGLECARD_LOGS": given},
        )
        assert done.stdout.split() == ["0", str(handlers), "0"]
        assert said in done.stderr and bool(done.stderr) == bool(said)


def test_observing_imports_next_to_nothing() -> None:
    """It is read at ``import singlecard``, which every process with torch.compile may do."""
    code = (
        "import sys, singlecard.observe.topics; "
        "print([name for name in ('torch', 'numpy', 'rich', 'blake3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_topic_is_listed_for_the_user() -> None:
    """A topic that the help does not name is not found."""
    assert set_logs.__doc__ is not None
    listed = set_logs.__doc__.partition("Topics are ")[2].partition(".")[0]
    assert set(listed.replace("\n", " ").replace(" and ", ", ").replace(" ", "").split(",")) == set(
        TOPICS
    )


def test_snapshots_do_not_change_and_subtract() -> None:
    """A benchmark counts what happened between two moments."""
    before = counters()
    count(hits=2, build_seconds=0.5)
    after = counters()
    assert after - before == Counters(hits=2, build_seconds=0.5)
    assert counters() == after
    with pytest.raises(FrozenInstanceError):
        after.hits = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        after - 1  # type: ignore[operator]


def test_counters_print_what_is_not_zero() -> None:
    """A person reads what happened, not eighteen zeros."""
    text = str(Counters(hits=1200, build_seconds=1.25))
    assert text.splitlines() == ["hits           1,200", "build_seconds  1.25"]
    assert str(Counters()) == "nothing counted"
    assert Counters(hits=1).to_dict()["hits"] == 1


def test_reset_loses_nothing() -> None:
    """Whoever exports counters each minute must not lose what happens between read and reset."""
    rounds, seen = 2000, []
    before = counters(reset=True)
    stop = threading.Event()

    def work() -> None:
        for _ in range(rounds):
            count(hits=1)

    def drain() -> None:
        while not stop.is_set():
            seen.append(counters(reset=True).hits)

    workers = [threading.Thread(target=work) for _ in range(4)]
    reader = threading.Thread(target=drain)
    for thread in (reader, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    reader.join()
    assert sum(seen) + counters(reset=True).hits == 4 * rounds
    count(**before.to_dict())


def test_a_misspelt_counter_is_an_error() -> None:
    """Counted under a name that nobody reads, it would be lost."""
    with pytest.raises(KeyError, match="hist"):
        count(hist=1)


def _count_in_a_child(results: Any) -> None:
    count(hits=1)
    results.put(counters().hits)


def test_a_child_forked_while_somebody_counts_can_count() -> None:
    """A data loader's worker that inherits a taken lock would wait for ever."""
    from singlecard.observe.counters import _state

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with _state.lock:
        hits = _state.counts["hits"]
        process = context.Process(target=_count_in_a_child, args=(results,))
        process.start()
        assert results.get(timeout=30) == hits + 1
    process.join(30)
    assert counters().hits == hits


EVENTS: dict[str, tuple[Any, Counters, str, str]] = {
    "hit": (
        lambda: events.record_hit(DIGEST, 2_500_000),
        Counters(hits=1, bytes_read=2_500_000),
        "cache",
        "hit 0123456789ab: 2.5 MB",
    ),
    "a hit that was waited for": (
        lambda: events.record_hit(DIGEST, 999, 1.26),
        Counters(hits=1, waits=1, bytes_read=999),
        "cache",
        "hit 0123456789ab: 999 B, built elsewhere while this waited 1.3 s",
    ),
    "miss": (
        lambda: events.record_miss(DIGEST, lambda: "the cache is empty"),
        Counters(misses=1),
        "cache",
        "miss 0123456789ab: the cache is empty",
    ),
    "damaged": (
        lambda: events.record_damaged(DIGEST, "the checksum of the plan differs"),
        Counters(damaged=1),
        "cache",
        "damaged 0123456789ab: the checksum of the plan differs. It was set aside and is built "
        "again",
    ),
    "evicted": (
        lambda: events.record_evicted(DIGEST, 10),
        Counters(evicted=1, evicted_bytes=10),
        "cache",
        "evicted 0123456789ab: 10 B",
    ),
    "built": (
        lambda: events.record_build(DIGEST, 3.21, 10_000, 7),
        Counters(builds=1, build_seconds=3.21, bytes_written=10_000),
        "build",
        "built 0123456789ab in 3.2 s: 7 kernels, 10.0 kB",
    ),
    "built by full TensorRT": (
        lambda: events.record_build(DIGEST, 3.21, 10_000, None),
        Counters(builds=1, build_seconds=3.21, bytes_written=10_000),
        "build",
        "built 0123456789ab in 3.2 s: unknown kernels, 10.0 kB",
    ),
    "not built": (
        lambda: events.record_build_failure(DIGEST, "no implementation"),
        Counters(build_failures=1),
        "build",
        "not built 0123456789ab: no implementation",
    ),
    "built behind calls": (
        lambda: events.record_background_build(DIGEST),
        Counters(background_builds=1),
        "build",
        "ready 0123456789ab: the next call runs it",
    ),
    "fetched": (
        lambda: events.record_remote_hit(DIGEST, 3_000_000_000, 2.0),
        Counters(remote_hits=1, remote_bytes_read=3_000_000_000),
        "remote",
        "fetched 0123456789ab: 3.0 GB in 2.0 s",
    ),
    "not in the shared cache": (
        lambda: events.record_remote_miss(DIGEST),
        Counters(remote_misses=1),
        "remote",
        "not there 0123456789ab",
    ),
    "sent": (
        lambda: events.record_remote_upload(DIGEST, 1000, 0.04),
        Counters(remote_uploads=1, remote_bytes_written=1000),
        "remote",
        "sent 0123456789ab: 1.0 kB in 0.0 s",
    ),
    "shared cache not usable": (
        lambda: events.record_remote_failure(DIGEST, "its signature is missing"),
        Counters(remote_failures=1),
        "remote",
        "failed 0123456789ab: its signature is missing",
    ),
}


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_counted_and_told(event: str, caplog: pytest.LogCaptureFixture) -> None:
    """A dashboard and a log that disagree are worse than one of them."""
    record, expected, name, line = EVENTS[event]
    caplog.set_level(logging.INFO, f"singlecard.{name}")
    before = counters()
    record()
    counted = (counters() - before).to_dict()
    assert counted == pytest.approx(expected.to_dict())
    assert [(item.name, item.getMessage()) for item in caplog.records] == [
        (f"singlecard.{name}", line)
    ]


def test_an_unread_reason_is_not_worked_out(caplog: pytest.LogCaptureFixture) -> None:
    """Looking for the nearest entry reads hundreds of files."""
    caplog.set_level(logging.WARNING, "singlecard.cache")
    before = counters()
    events.record_miss(DIGEST, lambda: pytest.fail("nobody reads this"))
    assert (counters() - before).misses == 1
