"""What is installed, what it can do, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from singlecard import __version__
from singlecard.checking import counted
from singlecard.engine.cache import Cache
from singlecard.errors import CacheError, SinglecardError
from singlecard.network.flavour import flavour_name, flavour_version, tensorrt
from singlecard.network.versions import builds_for_other_cards
from singlecard.report.plan_rows import format_bytes
from singlecard.targets import TARGETS


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        value: what was found.
        fine: whether it works; None for what one can do without.
        cure: what to do about it, or "".
    """

    name: str
    value: str
    fine: bool | None = True
    cure: str = ""


def inspect_installation(cache_dir: Path | None = None) -> list[Finding]:
    """Return all findings. Engines can be built if none of them has ``fine`` False."""
    return [
        Finding("singlecard", __version__),
        Finding("Python", platform.python_version()),
        _torch(),
        *_tensorrt(),
        _torch_tensorrt(),
        _gpu(),
        _cache(Cache(cache_dir)),
    ]


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("PyTorch", f"does not load: {error}", False, "pip install 'torch>=2.11'")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return Finding("PyTorch", f"{torch.__version__} ({cuda})")


def _tensorrt() -> list[Finding]:
    try:
        tensorrt()
    except SinglecardError as error:
        return [Finding("TensorRT", str(error), False)]
    offline = builds_for_other_cards()
    reach = "builds for cards that are not in this machine"
    if not offline:
        reach = "builds for the card in this machine only"
    cure = "" if offline else "for other cards: pip install tensorrt-rtx"
    return [
        Finding("TensorRT", f"{flavour_name()} {flavour_version()}, {reach}", True, cure),
        _trial(),
    ]


def _trial() -> Finding:
    """Build the smallest of engines: what is installed may still not fit together."""
    try:
        from singlecard.report.trial import build_product

        size = format_bytes(build_product())
    except Exception as error:
        text = f"fails: {type(error).__name__}: {error}"
        return Finding("trial build", text, False, "pip install --force-reinstall tensorrt-rtx")
    return Finding("trial build", f"an engine of {size}")


def _torch_tensorrt() -> Finding:
    """Look without importing: without a CUDA device the import fails."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        cure = "only to compare with it: pip install 'singlecard[torch-tensorrt]'"
        return Finding("Torch-TensorRT", "not installed", None, cure)
    try:
        return Finding("Torch-TensorRT", version("torch-tensorrt"), None)
    except PackageNotFoundError:
        return Finding("Torch-TensorRT", "of unknown version", None)


def _gpu() -> Finding:
    cards = _smi("name,compute_cap,memory.total")
    if not cards:
        cure = "engines are built and verified here, and run on a machine with a card"
        return Finding("GPU", "none found", None, cure)
    drivers = _smi("driver_version")
    text = "; ".join(f"{name} (sm{cap}, {memory})" for name, cap, memory in map(_card, cards))
    text += f", driver {drivers[0]}" if drivers else ""
    if not _torch_sees_gpu():
        cure = "this PyTorch cannot use it: install a CUDA build of torch"
        return Finding("GPU", text, None, cure)
    unserved = [f"sm{_card(card)[1]}" for card in cards if f"sm{_card(card)[1]}" not in TARGETS]
    cure = f"{', '.join(unserved)} is not among {', '.join(TARGETS)}" if unserved else ""
    return Finding("GPU", text, None if unserved else True, cure)


def _card(line: str) -> tuple[str, str, str]:
    name, capability, memory = (field.strip() for field in line.rsplit(",", 2))
    return name, capability.replace(".", ""), memory


def _smi(fields: str) -> list[str]:
    """Ask the driver's own tool, which also sees cards that this PyTorch cannot use."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _torch_sees_gpu() -> bool:
    try:
        import torch
    except (ImportError, OSError):
        return False
    return torch.cuda.is_available()


def _cache(cache: Cache) -> Finding:
    try:
        if cache.folder.exists():
            cache.open()
        elif not _can_make(cache.folder):
            raise PermissionError(f"{cache.folder} cannot be made")
        entries = cache.entries()
    except CacheError as error:
        return Finding("cache", str(error), False)
    except OSError as error:
        cure = "choose another folder with --cache-dir or SINGLECARD_CACHE"
        return Finding("cache", str(error), False, cure)
    size = format_bytes(sum(entry.size for entry in entries))
    return Finding("cache", f"{cache.folder}: {counted(len(entries), 'engine')}, {size}")


def _can_make(folder: Path) -> bool:
    """Tell whether a folder could be made, without making it."""
    parent = next(path for path in folder.absolute().parents if path.exists())
    return parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
