"""What the engine cache bears: kills, corruptions, full disks, and many processes at once.

    python benchmarks/cache_faults.py                              # some minutes, no GPU
    python benchmarks/cache_faults.py --kills 20 --corruptions 20  # a quick look
    python benchmarks/cache_faults.py --folder /mnt/nfs/x          # on another file system

Prints a table and, when run in full, writes ``results/cache_faults.json`` and
``results/cache_faults.md``. The exit status is 1 if anything went wrong: a wrong plan loaded, an
engine built twice at the same time, something left behind, somebody who waited for the dead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cache_page import render_page
from cache_workers import PHASES, Log, Told, digests, get, is_right, live, plan_of
from machine import describe_machine

from singlecard.engine.cache import MANIFEST, PLAN, Cache, StoreError
from singlecard.engine.scratch import remove_tree

RESULTS = Path(__file__).parent / "results"

#: Seconds after which somebody who waits is taken to wait for ever.
PATIENCE = 60

#: Exit status of a process that raised.
FAILED = 99

Figures = dict[str, Any]


def start(work: Callable[[], int]) -> int:
    """Run something in a process of its own, whose exit status it returns; return its number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = FAILED
        try:
            signal.alarm(PATIENCE)
            status = min(work(), FAILED - 1)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return child


def end(child: int) -> int:
    """Wait for a process; return its exit status, negative for the number of a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wrong_plans(cache: Cache, names: list[str]) -> int:
    """Return how many of the engines that the cache gives are not what was built."""
    found = [entry for name in names if (entry := cache.find(name)) is not None]
    return sum(not is_right(entry) for entry in found)


def left_behind(cache: Cache) -> list[str]:
    """Return the names in the folder that are no entry, whole or set aside, and no memory."""
    if not cache.engines.exists():
        return []
    names = [path.name for path in cache.engines.iterdir()]
    return [name for name in names if name.endswith((".tmp", ".lock"))]


def kill(folder: Path, count: int, rng: random.Random) -> Figures:
    """Kill a process at a random moment, every other time beside one that goes on; then look."""
    names, cache = digests(8, rng.randrange(10**9)), Cache(folder)
    phases: Counter[str] = Counter()
    outcomes: Counter[int] = Counter()
    wrong = unkilled = unfinished = leftovers = 0
    for index in range(count):
        told, until = Told(), time.monotonic() + 0.2
        victim = start(partial(live, folder, names, rng.random(), told, until))
        survivor = start(partial(live, folder, names, rng.random(), Told(), until * (index % 2)))
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(victim, signal.SIGKILL)
        unkilled += end(victim) != -signal.SIGKILL  # it failed by itself before
        phases[told.phase()] += 1
        outcomes[end(survivor)] += 1
        unfinished += len(left_behind(cache))
        wrong += wrong_plans(cache, names)
        outcomes[end(start(partial(ask, folder, rng.choice(names))))] += 1
        cache.open()
        leftovers += len(left_behind(cache))
    stuck = outcomes.pop(-signal.SIGALRM, 0)
    failed = unkilled + outcomes.pop(FAILED, 0)
    return {
        "kills": count,
        "phases": {phase: phases[phase] for phase in PHASES if phases[phase]},
        "wrong plans loaded": wrong + sum(status * count for status, count in outcomes.items()),
        "processes that waited for the dead": stuck,
        "processes that failed": failed,
        "unfinished names and locks of killed ones": unfinished,
        "names left behind": leftovers,
    }


def ask(folder: Path, name: str) -> int:
    """Ask for one engine; return 1 if a wrong one comes."""
    return int(not is_right(get(Cache(folder), name, 0)))


def bit_flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero_page(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(rng.randrange(path.stat().st_size // 4096) * 4096)
        file.write(bytes(4096))


def edit_manifest(path: Path, rng: random.Random) -> None:
    manifest = json.loads(path.read_text())
    key = rng.choice(sorted(manifest))
    manifest[key] = "edited" if manifest[key] != "edited" else "again"
    path.write_text(json.dumps(manifest))


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


#: What is done to the entry in a folder; ``other`` is another whole entry beside it.
CORRUPTIONS: dict[str, Callable[[Path, Path, random.Random], Any]] = {
    "bit of the plan flipped": lambda one, other, rng: bit_flip(one / PLAN, rng),
    "bit of the manifest flipped": lambda one, other, rng: bit_flip(one / MANIFEST, rng),
    "plan truncated": lambda one, other, rng: os.truncate(
        one / PLAN, rng.randrange((one / PLAN).stat().st_size)
    ),
    "manifest truncated": lambda one, other, rng: os.truncate(
        one / MANIFEST, rng.randrange((one / MANIFEST).stat().st_size)
    ),
    "page of the plan zeroed": lambda one, other, rng: zero_page(one / PLAN, rng),
    "bytes appended to the plan": lambda one, other, rng: os.truncate(
        one / PLAN, (one / PLAN).stat().st_size + rng.randrange(1, 9999)
    ),
    "plans of two entries swapped": lambda one, other, rng: swap(one / PLAN, other / PLAN),
    "manifests of two entries swapped": lambda one, other, rng: swap(
        one / MANIFEST, other / MANIFEST
    ),
    "two entries swapped": lambda one, other, rng: swap(one, other),
    "manifest edited by hand": lambda one, other, rng: edit_manifest(one / MANIFEST, rng),
    "plan removed": lambda one, other, rng: (one / PLAN).unlink(),
    "manifest removed": lambda one, other, rng: (one / MANIFEST).unlink(),
    "entry replaced by a link": lambda one, other, rng: (
        shutil.rmtree(one),
        one.symlink_to(other),
    ),
    "entry replaced by a pipe": lambda one, other, rng: (shutil.rmtree(one), os.mkfifo(one)),
}


def corrupt(folder: Path, count: int, rng: random.Random) -> Figures:
    """Corrupt an entry in one of all ways; look whether that is seen, and built again."""
    rows: dict[str, Counter[str]] = {kind: Counter() for kind in CORRUPTIONS}
    names, cache = digests(2, rng.randrange(10**9)), Cache(folder)
    for index in range(count):
        kind = list(CORRUPTIONS)[index % len(CORRUPTIONS)]
        for name in names:
            get(cache, name, 0)
        one, other = names if rng.random() < 0.5 else reversed(names)
        for aside in cache.engines.glob("*.damaged"):
            remove_tree(aside)
        CORRUPTIONS[kind](cache.path(one), cache.path(other), rng)
        found = cache.look(one)
        row = rows[kind]
        row["done"] += 1
        row["detected"] += found.entry is None and "damaged" in found.reason
        row["set aside"] += os.path.lexists(cache.path(f"{one}.damaged"))
        row["wrong plans loaded"] += found.entry is not None and not is_right(found.entry)
        row["built again"] += is_right(get(cache, one, 0)) and is_right(get(cache, other, 0))
    keys = ("done", "detected", "set aside", "built again", "wrong plans loaded")
    return {
        "kinds": {kind: {key: row[key] for key in keys} for kind, row in rows.items()},
        "total": {key: sum(row[key] for row in rows.values()) for key in keys},
        "names left behind": len(left_behind(cache)),
    }


def race(folder: Path, processes: int, engines: int, rng: random.Random, limit: bool) -> Figures:
    """Start processes together that all want all engines; see who built what, and when."""
    names = digests(engines, rng.randrange(10**9))
    log = Log(folder.parent / f"{folder.name}.log")
    bound = 5 * max(len(plan_of(name)) for name in names) if limit else None
    begin = time.monotonic() + 0.5
    seeds = [rng.random() for _ in range(processes)]

    def work(seed: float) -> int:
        own, cache, wrong = random.Random(seed), Cache(folder, limit_bytes=bound), 0
        time.sleep(max(0.0, begin - time.monotonic()))
        held = []
        for name in own.sample(names, len(names)):
            entry = get(cache, name, 0.05, log)
            wrong += not is_right(entry)
            held = [*held[-1:], entry]
            # What is held must be there by its name too, whatever room others make.
            wrong += sum(not one.plan.exists() for one in held)
        return wrong

    started = time.monotonic()
    children = [start(partial(work, seed)) for seed in seeds]  # type: ignore[misc]
    statuses = [end(child) for child in children]
    seconds = time.monotonic() - started
    builds, cache = log.builds(), Cache(folder, limit_bytes=bound)
    get(cache, *digests(1, rng.randrange(10**9)), 0)  # held by nobody else: room is made for it
    total = sum(entry.size for entry in cache.entries())
    return {
        "processes": processes,
        "engines": engines,
        "limit_bytes": bound,
        "seconds": round(seconds, 1),
        "builds": sum(builds.values()),
        "engines never built": engines - len(builds),
        "built while being built": log.overlaps(),
        "built again": 0 if limit else sum(count - 1 for count in builds.values()),
        "wrong plans loaded, or held ones removed": sum(s for s in statuses if 0 < s < FAILED),
        "processes that failed": sum(s < 0 or s == FAILED for s in statuses),
        "bytes over the limit at the end": max(0, total - bound) if bound else 0,
        "names left behind": len(left_behind(cache)),
    }


def race_often(
    folder: Path, rounds: int, processes: int, engines: int, rng: random.Random
) -> Figures:
    """Race within a limit in one new folder after another; return the sums of what happened."""
    runs = [
        race(folder / f"limit {index}", processes, engines, rng, limit=True)
        for index in range(rounds)
    ]
    same = {"processes": processes, "engines": engines}
    sums = {key: sum(run[key] for run in runs) for key in runs[0] if key != "limit_bytes"}
    return {"rounds": rounds, **sums, **same, "seconds": round(sums["seconds"], 1)}


def fill_disk(folder: Path, count: int, rng: random.Random) -> Figures:
    """Let a write fail after a random number of bytes, as on a full disk."""
    cache, (kept, name) = Cache(folder), digests(2, rng.randrange(10**9))
    get(cache, kept, 0)
    refused = other = 0

    def work(room: int) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            get(cache, name, 0)
        except StoreError as error:
            return 0 if str(cache.engines) in str(error) else 1
        return 2

    for _ in range(count):
        room = rng.randrange(len(plan_of(name)))
        status = end(start(partial(work, room)))
        refused += status == 0
        other += status != 0
    return {
        "full disks": count,
        "refused with the folder's name": refused,
        "other outcomes": other,
        "wrong plans loaded": wrong_plans(cache, [kept]),
        "entries that should not be there": len(cache.entries()) - 1,
        "names left behind": len(left_behind(cache)),
    }


def kill_builders(folder: Path, count: int, rng: random.Random) -> Figures:
    """Kill processes that build a small network with TensorRT; compare what is there afterwards."""
    from real_engine import build_small, import_all

    import_all()  # so that there is nothing to kill but the build
    reference = folder.with_name("reference")
    seconds = 0.0
    for _ in range(2):  # the first one reads TensorRT's libraries from the disk
        Cache(reference).clear()
        started = time.monotonic()
        if end(start(partial(build_small, reference))) != 0:
            raise RuntimeError("the small network does not build, undisturbed")
        seconds = time.monotonic() - started
    (whole,) = Cache(reference).entries()
    content = whole.plan.read_bytes()
    killed = wrong = stuck = leftovers = 0
    for index in range(count):
        cache = Cache(folder / str(index))
        victim = start(partial(build_small, cache.folder))
        time.sleep(rng.uniform(0, seconds))
        os.kill(victim, signal.SIGKILL)
        killed += end(victim) == -signal.SIGKILL
        entry = cache.find(whole.digest)
        wrong += entry is not None and entry.plan.read_bytes() != content
        status = end(start(partial(build_small, cache.folder)))
        stuck += status == -signal.SIGALRM
        entry = cache.find(whole.digest)
        wrong += status != 0 or entry is None or entry.plan.read_bytes() != content
        leftovers += len(left_behind(cache))
    return {
        "builders killed": count,
        "milliseconds of a build": round(1000 * seconds),
        "of them before they were done": killed,
        "wrong plans loaded": wrong,
        "processes that waited for the dead": stuck,
        "names left behind": leftovers,
    }


#: Figures that must be 0, wherever they stand.
ZERO = (
    "wrong plans loaded",
    "wrong plans loaded, or held ones removed",
    "processes that waited for the dead",
    "processes that failed",
    "names left behind",
    "engines never built",
    "built while being built",
    "built again",
    "bytes over the limit at the end",
    "other outcomes",
    "entries that should not be there",
)


def faults_of(result: Figures) -> list[str]:
    """Return what went wrong, one line each."""
    faults = [
        f"{part}: {key}: {value}"
        for part, figures in result.items()
        for key, value in figures.items()
        if key in ZERO and value
    ]
    total = result["corruptions"]["total"]
    if total["wrong plans loaded"] or total["built again"] != total["done"]:
        faults.append(f"corruptions: {total}")
    # A flipped bit that changes no meaning, such as the case of an exponent, is no corruption.
    if total["detected"] != total["done"] or total["set aside"] != total["done"]:
        faults.append(f"corruptions that were not detected: {total}")
    return faults


@contextmanager
def place(given: Path | None) -> Iterator[Path]:
    """Return a folder for the caches, which is removed at the end."""
    with tempfile.TemporaryDirectory(dir=given, prefix="cache-faults-") as folder:
        yield Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Try to break the engine cache.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--corruptions", type=int, default=200)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--engines", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20, help="of the race within a limit")
    parser.add_argument("--full-disks", type=int, default=50)
    parser.add_argument("--builders", type=int, default=20, help="TensorRT builds to kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the caches lie, for a few minutes")
    given = parser.parse_args()
    rng, started = random.Random(given.seed), time.monotonic()
    many = given.processes, given.engines
    with place(given.folder) as folder:
        result = {
            "kills": kill(folder / "kills", given.kills, rng),
            "corruptions": corrupt(folder / "corruptions", given.corruptions, rng),
            "race": race(folder / "race", *many, rng, limit=False),
            "race within a limit": race_often(folder, given.rounds, *many, rng),
            "full disks": fill_disk(folder / "full", given.full_disks, rng),
        }
        if given.builders:
            result["TensorRT builds"] = kill_builders(folder / "real", given.builders, rng)
    faults = faults_of(result)
    document = {
        "machine": describe_machine(),
        "seed": given.seed,
        "seconds": round(time.monotonic() - started),
        "faults": faults,
        **result,
    }
    page = render_page(document)
    print(page)
    if all(getattr(given, name) == parser.get_default(name) for name in vars(given)):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "cache_faults.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / "cache_faults.md").write_text(page)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
