"""What a build file asks for, one engine build after the other."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from singlecard.axes import text_from_axes
from singlecard.errors import OptionError
from singlecard.offline.build_file import BuildFile, Entry


@dataclass(frozen=True)
class Job:
    """One model in one precision for one group of cards: what one process builds."""

    entry: Entry
    precision: str
    targets: tuple[str, ...]
    folder: Path

    @property
    def targets_text(self) -> str:
        return ",".join(self.targets) or "portable"

    @property
    def name(self) -> str:
        return f"{self.entry.name} {self.precision} {self.targets_text}"

    @property
    def source(self) -> str:
        """The model, told from those of other build files: jobs of one source need like memory."""
        return f"{self.folder}: {self.entry.model}"

    @property
    def key(self) -> str:
        """What was asked for, as a digest; files and versions decide what that leads to."""
        asked = [self.source, self.request()]
        return str(blake3.blake3(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32])

    def request(self) -> dict[str, Any]:
        """Return the job as plain values."""
        return {
            "model": self.entry.model,
            "folder": str(self.folder),
            "options": self.entry.options_for(self.precision, self.targets),
            "shapes": {name: text_from_axes(axes) for name, axes in self.entry.shapes.items()},
        }

    def files(self) -> tuple[Path, ...]:
        """Return the files that are known to decide what is built, before the model is loaded."""
        options = self.entry.options_for(self.precision, self.targets)
        table = (Path(options["calibration"]),) if "calibration" in options else ()
        exported = (self.folder / self.entry.model,) if self.entry.model.endswith(".pt2") else ()
        return (*table, *exported, *self.entry.files)


def jobs_of(file: BuildFile, only: Sequence[str] = ()) -> list[Job]:
    """Return the jobs of a build file, in its order.

    Args:
        only: names of models, ``*`` stands for any text; empty means all.

    Raises:
        OptionError: no model is called so.
    """
    names = [entry.name for entry in file.entries]
    for wanted in only:
        if not fnmatch.filter(names, wanted):
            close = difflib.get_close_matches(wanted, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
            raise OptionError(f"{file.path} has no model called {wanted!r}: {hint}")
    return [
        Job(entry, precision, targets, file.path.parent)
        for entry in file.entries
        if not only or any(fnmatch.fnmatchcase(entry.name, wanted) for wanted in only)
        for precision in entry.precisions
        for targets in entry.targets
    ]
