"""What earlier runs of build files finished, in one file beside the engines.

It only saves time: without it models are captured again, and their engines found. Every job is
written as it ends, whole or not at all, under a lock, so that runs may be killed, and may overlap.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from singlecard.engine.cache import PLAN, Cache
from singlecard.offline.jobs import Job
from singlecard.offline.memory import need_again
from singlecard.offline.parts import changed_part

log = logging.getLogger("singlecard")

FORMAT = 1
NAME = "build-state.json"


class State:
    """The memory of jobs in one cache folder."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.path = cache.folder / NAME
        self._jobs = self._read()

    def why_build(self, job: Job) -> str | None:
        """Return why a job is to be done, as a sentence; None where its engines are all there."""
        record = self._jobs.get(job.key)
        if record is None or not record["digests"]:
            return "it was not built so far"
        for digest in record["digests"]:
            if self._cache.find(digest) is None:
                return f"engine {digest[:12]} is not in the cache"
        return changed_part(record["parts"])

    def document(self, job: Job) -> dict[str, Any]:
        """Return what the process that did a job said of it, as of engines that are there."""
        document = dict(self._jobs[job.key]["document"])
        document["engines"] = [
            {
                **engine,
                "built": False,
                "seconds": 0.0,
                "plan": str(self._cache.path(engine["digest"]) / PLAN),
            }
            for engine in document["engines"]
        ]
        return document

    def need(self, job: Job) -> int | None:
        """Return the bytes that a job will hold, from the peaks of earlier ones; None: unknown.

        Its own peak counts most, then the largest of the same model in other precisions.
        """
        if job.entry.memory is not None:
            return job.entry.memory
        own = self._jobs.get(job.key, {}).get("peak_bytes")
        others = [
            record["peak_bytes"] for record in self._jobs.values() if record["source"] == job.source
        ]
        peak = own or max(others, default=0)
        return need_again(peak, own is not None) if peak else None

    def remember(
        self, job: Job, peak: int, parts: Mapping[str, str], document: Mapping[str, Any]
    ) -> None:
        """Write down what a job built."""
        self._change(
            job,
            {
                "job": job.name,
                "source": job.source,
                "peak_bytes": peak,
                "finished": time.time(),
                "parts": dict(parts),
                "digests": [engine["digest"] for engine in document["engines"]],
                "document": dict(document),
            },
        )

    def forget(self, job: Job) -> None:
        """Have a job that failed done again, whatever was known of it."""
        if job.key in self._jobs:
            self._change(job, None)

    def _change(self, job: Job, record: dict[str, Any] | None) -> None:
        try:
            with filelock.FileLock(self.path.with_suffix(".lock"), mode=0o600):
                self._jobs = {**self._read(), job.key: record}
                self._jobs = {key: held for key, held in self._jobs.items() if held is not None}
                self._write()
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): the next run will load %s again",
                self.path,
                error,
                job.entry.name,
            )

    def _read(self) -> dict[str, Any]:
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            jobs = held["jobs"] if held["format"] == FORMAT else {}
            return {key: record for key, record in jobs.items() if _is_whole(record)}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s): every model is loaded again", self.path, error)
            return {}

    def _write(self) -> None:
        handle, temporary = tempfile.mkstemp(prefix=f"{NAME}.", suffix=".tmp", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, "jobs": self._jobs}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _is_whole(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("source"), str)
        and isinstance(record.get("peak_bytes"), int)
        and isinstance(record.get("parts"), dict)
        and isinstance(record.get("document"), dict)
        and isinstance(record.get("digests"), list)
        and all(isinstance(digest, str) for digest in record["digests"])
    )
