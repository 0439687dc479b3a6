"""What the engines of a job followed from: files and versions, as named parts that can be compared.

A job whose parts are all as they were need not load its model again. Parts are what the process
that built it really used: the files of every module it imported from outside of the installation,
and the version of every package it imported.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import singlecard
from singlecard.hashing import hasher_for

_FILE, _PACKAGE = "file ", "package "


def parts_now(files: Iterable[Path]) -> dict[str, str]:
    """Return the parts of what this process has imported, and of further files."""
    sources = [*_own_sources(), *files]
    parts = {f"{_FILE}{path}": _digest(path) for path in sources}
    homes = packages_distributions()
    imported = {name.partition(".")[0] for name in sys.modules}
    packages = {home for name in imported for home in homes.get(name, ())}
    for package in sorted(packages | {"singlecard"}):
        parts[f"{_PACKAGE}{package}"] = _version(package)
    return parts


def changed_part(parts: Mapping[str, str]) -> str | None:
    """Return what is no longer as it was, as a sentence; None where all is."""
    for name, before in parts.items():
        if name.startswith(_FILE):
            path = name.removeprefix(_FILE)
            now = _digest(Path(path))
            if now != before:
                return f"{path} {'changed' if now else 'is gone'}"
        else:
            package = name.removeprefix(_PACKAGE)
            now = _version(package)
            if now != before:
                return f"{package} is {now or 'gone'}, was {before}"
    return None


def _own_sources() -> list[Path]:
    """Return the files of imported modules that no package manager installed."""
    installed = [
        Path(sysconfig.get_path(name)).resolve()
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    installed.append(Path(__file__).resolve().parents[1])  # singlecard, known by its version
    found = set()
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if not isinstance(source, str):
            continue
        path = Path(source).resolve()
        if path.is_file() and not any(path.is_relative_to(folder) for folder in installed):
            found.add(path)
    return sorted(found)


def _digest(path: Path) -> str:
    try:
        hasher = hasher_for(path.stat().st_size)
        hasher.update_mmap(path)
    except OSError:
        return ""
    return str(hasher.hexdigest())


def _version(package: str) -> str:
    if package == "singlecard":
        return singlecard.__version__  # also where it is on the path, and not installed
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
