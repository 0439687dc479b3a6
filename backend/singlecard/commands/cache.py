"""``singlecard cache``: look at the built engines, check them, make room, explain a miss."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group

from singlecard.checking import counted
from singlecard.commands.answer import Answer
from singlecard.commands.arguments import (
    Parser,
    add_cache_dir,
    add_common,
    add_options,
    add_shapes,
    options_from,
    size_from_text,
)
from singlecard.engine.cache import Cache, Entry
from singlecard.errors import CacheError, OptionError

if TYPE_CHECKING:
    from singlecard.engine.nearest import Difference
    from singlecard.report.keys import EngineLookup


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "cache",
        help="list, show, explain, verify, prune or clear the built engines",
        description="Look after the folder of built engines.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="one row for each engine, last used first")
    show = actions.add_parser("show", help="what one engine was built from, and what it does")
    show.add_argument("digest", metavar="DIGEST", help="its digest, or how that begins")
    explain = actions.add_parser(
        "explain",
        help="why the cache does not have a model's engines, or how two engines differ",
        description="Capture and lower a model as 'build' does, build nothing, and say which parts "
        "of each engine's key differ from the nearest entry; or compare two entries. Exit status 1 "
        "if an engine of the model is not there.",
    )
    explain.add_argument(
        "given",
        nargs="+",
        metavar="MODEL | DIGEST DIGEST",
        help="a model as for 'build', with the options of the backend; or the digests of two "
        "entries, or how they begin",
    )
    add_options(explain)
    add_shapes(explain)
    actions.add_parser("verify", help="read every engine; exit status 1 if one is damaged")
    prune = actions.add_parser("prune", help="remove what was not used for longest")
    prune.add_argument(
        "--limit", type=size_from_text, metavar="SIZE", required=True, help="what may stay: 10GB"
    )
    actions.add_parser("clear", help="remove all engines")
    for name, action in actions.choices.items():
        if name != "explain":  # it has all options of a build
            add_cache_dir(action)
        add_common(action, run)


def run(given: argparse.Namespace) -> Answer:
    cache = Cache(given.cache_dir)
    if cache.folder.exists() and not cache.folder.is_dir():
        raise CacheError(
            f"the engine cache {cache.folder} is not a folder: name one with --cache-dir"
        )
    try:
        return _ACTIONS[given.action](cache, given)
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(
            f"the engine cache {cache.folder} cannot be used ({error}): see to its permissions, or "
            "name another folder with --cache-dir"
        ) from error


def _list(cache: Cache, given: argparse.Namespace) -> Answer:
    from singlecard.report.cache_tables import entries_table

    entries = cache.entries()
    document = {
        "folder": str(cache.folder),
        "bytes": sum(entry.size for entry in entries),
        "engines": [_entry_document(entry) for entry in entries],
    }
    return Answer(document, entries_table(cache.folder, entries))


def _entry_document(entry: Entry) -> dict[str, Any]:
    from singlecard.report.cache_tables import kernel_count

    return {
        "digest": entry.digest,
        "bytes": entry.size,
        "created": entry.manifest["created"],
        "last_used": entry.folder.stat().st_mtime,
        "build_seconds": entry.manifest["build_seconds"],
        "kernels": kernel_count(entry),
        "plan": str(entry.plan),
        "key": entry.manifest["key"],
    }


def _show(cache: Cache, given: argparse.Namespace) -> Answer:
    from singlecard.engine.cards import cards_of
    from singlecard.engine.plan_report import PlanReport
    from singlecard.report.cache_tables import entry_table
    from singlecard.report.render import plan_table

    entry = _chosen(cache, given.digest)
    report = PlanReport.from_dict(entry.manifest["report"])
    key = entry.manifest["key"]
    targets = key["targets"].split(",")  # full TensorRT builds for cards that no option names
    cards = cards_of(() if targets == ["portable"] else targets)
    shown = Group(
        entry_table(entry), "", plan_table(report, cards=cards, tf32=key["tf32"] == "True")
    )
    return Answer({**_entry_document(entry), "report": report.to_dict()}, shown)


def _chosen(cache: Cache, digest: str) -> Entry:
    entries = cache.entries()
    found = [entry for entry in entries if entry.digest.startswith(digest.lower())]
    if not found:
        raise OptionError(
            f"no engine in {cache.folder} has a digest that begins with {digest!r}: "
            "'singlecard cache list' shows what is there"
        )
    if len(found) > 1:
        names = ", ".join(entry.digest[:16] for entry in found[:4])
        raise OptionError(f"{digest!r} begins {len(found)} digests ({names}): give more digits")
    return found[0]


def _explain(cache: Cache, given: argparse.Namespace) -> Answer:
    named = given.given
    if len(named) == 1 and not re.fullmatch("[0-9a-fA-F]+", named[0]):
        return _explain_model(cache, given, named[0])
    if len(named) != 2:
        raise OptionError(
            f"cache explain takes a model, or the digests of two engines, and got "
            f"{' '.join(named)!r}: 'singlecard cache show DIGEST' tells of one"
        )
    from singlecard.engine.nearest import differences
    from singlecard.report.cache_tables import differences_table

    here, there = (_chosen(cache, digest) for digest in named)
    found = differences(here.manifest["key"], there.manifest["key"])
    document = {
        "here": here.digest,
        "there": there.digest,
        "differences": _difference_documents(found),
    }
    return Answer(document, differences_table(here.digest, there.digest, found))


def _explain_model(cache: Cache, given: argparse.Namespace, model: str) -> Answer:
    options = options_from(given)
    from singlecard.commands.running import run_model
    from singlecard.report.cache_tables import lookups_table
    from singlecard.report.keys import keys_of_model, look_up

    given.model = model
    keys = run_model(given, options, lambda loaded, _: keys_of_model(loaded, options), builds=False)
    lookups = [look_up(key, cache) for key in keys]
    document = {
        "model": model,
        "folder": str(cache.folder),
        "engines": [_lookup_document(item) for item in lookups],
    }
    there = bool(lookups) and all(item.cached for item in lookups)
    return Answer(document, lookups_table(model, cache.folder, lookups), 0 if there else 1)


def _lookup_document(item: EngineLookup) -> dict[str, Any]:
    return {
        "digest": item.digest,
        "cached": item.cached,
        "reason": item.reason,
        "nearest": item.nearest and item.nearest.digest,
        "differences": _difference_documents(item.nearest.differences if item.nearest else ()),
        "key": dict(item.key),
    }


def _difference_documents(found: Sequence[Difference]) -> list[dict[str, str]]:
    return [{"part": item.part, "here": item.here, "there": item.there} for item in found]


def _verify(cache: Cache, given: argparse.Namespace) -> Answer:
    from singlecard.report.cache_tables import verified_table

    wrong = cache.verify()
    damaged = sum(reason is not None for reason in wrong.values())
    document = {
        "folder": str(cache.folder),
        "damaged": damaged,
        "engines": [
            {"digest": digest, "whole": reason is None, "reason": reason}
            for digest, reason in wrong.items()
        ],
    }
    return Answer(document, verified_table(cache.folder, wrong), 1 if damaged else 0)


def _prune(cache: Cache, given: argparse.Namespace) -> Answer:
    removed = cache.prune(given.limit)
    kept = cache.entries()
    document = {
        "folder": str(cache.folder),
        "removed": [entry.digest for entry in removed],
        "kept": len(kept),
        "bytes": sum(entry.size for entry in kept),
    }
    return Answer(document, f"removed {_counted(len(removed))}, kept {len(kept)}")


def _clear(cache: Cache, given: argparse.Namespace) -> Answer:
    count = cache.clear()
    text = f"removed {_counted(count)} from {cache.folder}"
    return Answer({"folder": str(cache.folder), "removed": count}, text)


def _counted(count: int) -> str:
    return counted(count, "engine")


_ACTIONS = {
    "list": _list,
    "show": _show,
    "explain": _explain,
    "verify": _verify,
    "prune": _prune,
    "clear": _clear,
}
