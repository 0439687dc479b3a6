"""The build file: models, precisions and targets in TOML, checked as a whole before any work."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from singlecard.axes import Axes, Range, axes_of_input
from singlecard.errors import OptionError, SinglecardError
from singlecard.files import MOST_TEXT, read_file
from singlecard.options import QUANTIZED, Options, Precision, types_of
from singlecard.sizes import bytes_from_text
from singlecard.targets import check_types, parse_targets

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TOP = ("cache_dir", "precisions", "targets", "workers", "memory", "options", "model")
_MODEL = (
    "name",
    "model",
    "precisions",
    "targets",
    "shapes",
    "calibration",
    "memory",
    "files",
    "options",
)

#: Options that have a key of their own, or that make no sense where nothing is run.
_ELSEWHERE = ("precision", "calibration", "targets", "profiles", "cache_dir", "execution", "build")
_OPTIONS = tuple(item.name for item in dataclasses.fields(Options) if item.name not in _ELSEWHERE)

#: Where an option that is no key of [options] is said instead.
_INSTEAD = {
    "precision": "write key precisions",
    "targets": "write key targets",
    "calibration": "write key calibration of [[model]]",
    "profiles": "write key shapes of [[model]]",
    "cache_dir": "write key cache_dir at the top",
    "execution": "a build runs nothing",
    "build": "a build file always builds",
}

#: Words people write for keys that have another name here.
_SYNONYMS = {"precision": "precisions", "target": "targets", "models": "model", "shape": "shapes"}


@dataclass(frozen=True)
class Entry:
    """One ``[[model]]`` table, with the defaults of the file where it says nothing.

    Attributes:
        name: unique in the file.
        model: MODEL, relative to the file's folder.
        precisions: one job each, and for each of them
        targets: one job for each group of cards that share an engine; ``()`` is portable.
        shapes: sizes of inputs.
        calibration: a table, for the precisions that take one.
        memory: bytes that a job needs, where the user knows.
        files: what the model is made from beside its Python code.
        options: other options, as `Options.parse` takes them.
    """

    name: str
    model: str
    precisions: tuple[str, ...] = ("fp32",)
    targets: tuple[tuple[str, ...], ...] = ((),)
    shapes: Axes = field(default_factory=dict)
    calibration: Path | None = None
    memory: int | None = None
    files: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def options_for(self, precision: str, targets: Sequence[str]) -> dict[str, Any]:
        """Return the options of one job; a calibration table goes to what takes one."""
        options = dict(self.options) | {"precision": precision, "targets": list(targets)}
        if self.calibration is not None and takes_calibration(precision):
            options["calibration"] = str(self.calibration)
        return options


@dataclass(frozen=True)
class BuildFile:
    """A build file that is right in itself.

    Attributes:
        path: the file, absolute. Paths in it are relative to its folder.
        entries: the models.
        cache_dir: where engines go; None: the usual cache.
        workers: jobs at a time, at most; None: the number of cores.
        memory: bytes that jobs may hold together; None: a share of what is free.
    """

    path: Path
    entries: tuple[Entry, ...]
    cache_dir: Path | None = None
    workers: int | None = None
    memory: int | None = None


def takes_calibration(precision: str) -> bool:
    """Tell whether a calibration table is of use to a precision."""
    return precision in ("fp16", *QUANTIZED)


def read_build_file(path: Path) -> BuildFile:
    """Read and check a build file.

    Raises:
        OptionError: it is missing, no TOML, or wrong; names every problem that it has.
    """
    path = path.absolute()
    try:
        data = tomllib.loads(read_file(path, MOST_TEXT).decode())
    except FileNotFoundError:
        near = [file.name for file in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, 1)
        hint = f"did you mean {path.with_name(close[0])}?" if close else "name an existing file"
        raise OptionError(f"there is no build file {path}: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the build file {path} cannot be read ({error}): see to it") from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"the build file {path} is no TOML: {error}. Correct it there") from error
    reader = _Reader(path.parent)
    result = reader.file(path, data)
    problems = list(dict.fromkeys(reader.problems))
    if len(problems) == 1:
        raise OptionError(f"the build file {path} is not valid: {problems[0]}")
    if problems:
        listed = "; ".join(f"({place}) {text}" for place, text in enumerate(problems, 1))
        raise OptionError(f"the build file {path} has {len(problems)} problems: {listed}")
    return result


class _Reader:
    """Reads a file to its end, whatever is wrong on the way, and keeps the problems."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def file(self, path: Path, data: Mapping[str, Any]) -> BuildFile:
        self._check_keys("the top", data, _TOP)
        cache = self._text("the top", data, "cache_dir", "a folder")
        tables = data.get("model", [])
        if isinstance(tables, Mapping):
            self._tell("[model] is one table: write [[model]], with two brackets, for each model")
            tables = []
        elif not isinstance(tables, list) or not all(isinstance(it, Mapping) for it in tables):
            self._tell(f"model = {tables!r}: write a table [[model]] for each model")
            tables = []
        elif not tables:
            self._tell('it lists no model: write a table [[model]] with model = "path.py:function"')
        entries = [self._entry(place, table, data) for place, table in enumerate(tables, 1)]
        names = [entry.name for entry in entries]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                self._tell(f"{names.count(name)} models are called {name!r}: give each its name")
        if not any("options" in table for table in tables):
            self._options("[options]", data)
        return BuildFile(
            path,
            tuple(entries),
            None if cache is None else self._path(cache),
            self._workers(data),
            self._size("the top", data),
        )

    def _entry(self, place: int, table: Mapping[str, Any], top: Mapping[str, Any]) -> Entry:
        named = table.get("name", table.get("model"))
        where = f"[[model]] {named!r}" if isinstance(named, str) else f"[[model]] number {place}"
        self._check_keys(where, table, _MODEL)
        model = self._text(where, table, "model", "path.py:function")
        if "model" not in table:
            self._tell(f'{where} lacks key model: write model = "path.py:function"')
        elif model is not None:
            self._check_model(where, model)
        name = self._text(where, table, "name", "a name")
        calibration = self._text(where, table, "calibration", "a file")
        entry = Entry(
            name or (model or "").rpartition(":")[2] or f"number {place}",
            model or "",
            self._precisions(where, table, top),
            self._targets(where, table, top),
            self._shapes(where, table),
            None if calibration is None else self._path(calibration),
            self._size(where, table),
            self._files(where, table),
            {**self._options("[options]", top), **self._options(f"{where}, options", table)},
        )
        self._check_jobs(where, entry)
        return entry

    def _check_jobs(self, where: str, entry: Entry) -> None:
        """Check the options of each job as the backend itself would."""
        if entry.calibration is not None and not any(map(takes_calibration, entry.precisions)):
            self._tell(
                f"{where}: calibration is given, and none of {', '.join(entry.precisions)} uses "
                f"it: build one of fp16, {', '.join(QUANTIZED)}"
            )
            return
        for precision in entry.precisions:
            for targets in entry.targets:
                try:
                    options = Options.parse(entry.options_for(precision, targets))
                    check_types(types_of(options.precision), options.targets or ())
                except SinglecardError as error:
                    self._tell(f"{where}: {error}")

    def _check_model(self, where: str, model: str) -> None:
        source = model if model.endswith(".pt2") else model.rpartition(":")[0]
        if not source:
            self._tell(
                f"{where}: model = {model!r} names no function: write path.py:function, "
                "package.module:function or a .pt2 file"
            )
        elif source.endswith((".py", ".pt2")) and not self._path(source).is_file():
            path = self._path(source)
            near = [file.name for file in path.parent.glob(f"*{path.suffix}")]
            close = difflib.get_close_matches(path.name, near, 1)
            hint = f"did you mean {close[0]}?" if close else "paths are relative to the build file"
            self._tell(f"{where}: there is no file {source} (looked for {path}): {hint}")

    def _precisions(
        self, where: str, table: Mapping[str, Any], top: Mapping[str, Any]
    ) -> tuple[str, ...]:
        where, given = _given("precisions", where, table, top, ["fp32"])
        valid = get_args(Precision)
        if not isinstance(given, list) or not given or not all(isinstance(x, str) for x in given):
            self._tell(
                f"{where}: precisions = {given!r}, it takes a list of precisions, such as "
                '["fp16", "int8"]'
            )
            return ()
        for name in given:
            if name not in valid:
                close = difflib.get_close_matches(name, valid, 1, 0.4)
                hint = f"did you mean {close[0]!r}? " if close else ""
                self._tell(f"{where}: unknown precision {name!r}: {hint}One of {', '.join(valid)}")
        return tuple(dict.fromkeys(name for name in given if name in valid))

    def _targets(
        self, where: str, table: Mapping[str, Any], top: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], ...]:
        where, given = _given("targets", where, table, top, ["portable"])
        groups = []
        if not isinstance(given, list) or not given:
            self._tell(f"{where}: targets = {given!r}, {_TARGETS}")
            return ()
        for item in given:
            names = [item] if isinstance(item, str) else item
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                self._tell(f"{where}: targets has {item!r}, {_TARGETS}")
                continue
            try:
                groups.append(parse_targets(names))
            except SinglecardError as error:
                self._tell(f"{where}: {error}")
        return tuple(dict.fromkeys(groups))

    def _shapes(self, where: str, table: Mapping[str, Any]) -> Axes:
        given = table.get("shapes", {})
        if not isinstance(given, Mapping) or not all(isinstance(x, str) for x in given.values()):
            self._tell(
                f"{where}: shapes = {given!r}, it takes a table from inputs to the sizes of their "
                'axes, such as {input_ids = "1:8:32,1:128:512"}'
            )
            return {}
        shapes: dict[str, Mapping[int, Range]] = {}
        for name, text in given.items():
            try:
                shapes[name] = axes_of_input(name, text)
            except OptionError as error:
                self._tell(f"{where}: {error}")
        return shapes

    def _files(self, where: str, table: Mapping[str, Any]) -> tuple[Path, ...]:
        given = table.get("files", [])
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            self._tell(
                f'{where}: files = {given!r}, it takes a list of files, such as ["a.safetensors"]'
            )
            return ()
        paths = [self._path(item) for item in given]
        for item, path in zip(given, paths, strict=True):
            if not path.is_file():
                self._tell(f"{where}: files names {item!r}, which is no file (looked for {path})")
        return tuple(paths)

    def _options(self, where: str, table: Mapping[str, Any]) -> dict[str, Any]:
        given = table.get("options", {})
        if not isinstance(given, Mapping):
            self._tell(f"{where} = {given!r}, it takes a table, such as {{strict = true}}")
            return {}
        self._check_keys(where, given, _OPTIONS)
        return {key: value for key, value in given.items() if key in _OPTIONS}

    def _workers(self, data: Mapping[str, Any]) -> int | None:
        given = data.get("workers")
        if given is not None and (
            isinstance(given, bool) or not isinstance(given, int) or given < 1
        ):
            self._tell(f"workers = {given!r}, it takes an integer >= 1")
            return None
        return given

    def _size(self, where: str, table: Mapping[str, Any]) -> int | None:
        given = table.get("memory")
        if given is None:
            return None
        try:
            if isinstance(given, str):
                return bytes_from_text(given)
            if isinstance(given, int) and not isinstance(given, bool) and given > 0:
                return given
        except ValueError:
            pass
        self._tell(f'{where}: memory = {given!r}, it takes a size, such as "12GB"')
        return None

    def _text(self, where: str, table: Mapping[str, Any], key: str, what: str) -> str | None:
        given = table.get(key)
        if given is not None and (not isinstance(given, str) or not given.strip()):
            self._tell(f"{where}: {key} = {given!r}, it takes {what} as text")
            return None
        return given

    def _check_keys(self, where: str, table: Mapping[str, Any], valid: Sequence[str]) -> None:
        for key in table:
            if key in valid:
                continue
            if valid is _OPTIONS and key in _INSTEAD:
                hint = _INSTEAD[key]
            else:
                close = difflib.get_close_matches(key, valid, 1, 0.6)
                close = [_SYNONYMS[key]] if _SYNONYMS.get(key) in valid else close
                hint = f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid)}"
            self._tell(f"unknown key {key!r} in {where}: {hint}")

    def _path(self, given: str) -> Path:
        return Path(os.path.normpath(self.folder / Path(given).expanduser()))

    def _tell(self, problem: str) -> None:
        self.problems.append(problem)


_TARGETS = (
    'it takes a list with one entry for each engine, such as ["sm86", "sm89"]; a list inside of '
    'it, ["sm86", "sm89"], is one engine for both'
)


def _given(
    key: str, where: str, table: Mapping[str, Any], top: Mapping[str, Any], default: Any
) -> tuple[str, Any]:
    """Return the table that gives a key, and what it gives."""
    if key in table:
        return where, table[key]
    return "the top", top.get(key, default)
