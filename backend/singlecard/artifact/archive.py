"""The container of an artifact: a ZIP file whose members are stored as they are, page by page.

Members begin at multiples of a page, so that TensorRT reads an engine from the mapped file, and
nothing is unpacked. What is in a member is checked against the manifest when it is read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import blake3

from singlecard.errors import ArtifactError
from singlecard.files import open_regular

#: Bytes; the page of a CPU, and what `mmap` wants offsets to be multiples of.
PAGE = 4096

MANIFEST, SIGNATURE = "manifest.json", "signature"

#: Bytes of a manifest, which is read before anything can be checked.
MOST_MANIFEST = 1 << 26

#: A local header before its name and extra field, and the entry there that ZIP64 takes.
_HEADER, _ZIP64 = 30, 20

#: The kind of the entry that only fills an extra field up, as Android's zipalign has it.
_PADDING = 0xD935

_CHUNK = 1 << 22

#: What all damage comes down to.
COPY_AGAIN = "copy it again from where it was exported, or export the model again"


@dataclass(frozen=True)
class Member:
    """One file in an artifact: its name, where its bytes are, and what they must be."""

    name: str
    offset: int
    length: int


@dataclass
class Writer:
    """Writes the members of an artifact, one after the other.

    Attributes:
        members: by name, the length and the BLAKE3 digest of what was added.
    """

    _zip: zipfile.ZipFile
    members: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, content: bytes | Path) -> str:
        """Add a member: bytes, or what is in a file; return its name."""
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        before = self._zip.fp.tell() + _HEADER + len(name.encode()) + _ZIP64  # type: ignore[union-attr]
        fill = -(before + 4) % PAGE
        info.extra = struct.pack("<HH", _PADDING, fill) + bytes(fill)
        hasher, length = blake3.blake3(), 0
        with self._zip.open(info, "w", force_zip64=True) as member:
            for part in _parts(content):
                hasher.update(part)
                member.write(part)
                length += len(part)
        self.members[name] = {"bytes": length, "blake3": hasher.hexdigest()}
        return name


def _parts(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while part := file.read(_CHUNK):
            yield part


def check_folder(path: Path) -> None:
    """Verify that an artifact can be written, before the work that may take long.

    Raises:
        ArtifactError: its folder is not there, or it is a folder itself.
    """
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ArtifactError(
            f"the artifact {path} cannot be written: {why}. Make the folder, or give another path"
        )


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Write an artifact under a temporary name, and give it its own once it is whole.

    Raises:
        ArtifactError: it cannot be written; what was under the name before is there still.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as container:
                yield Writer(container)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"the artifact {path} cannot be written: {error.strerror or error}. What was there is as "
        "it was: free space there, or choose another path"
    )


def _umask() -> int:
    """Return the bits that new files shall not have; reading them means setting them for once."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _opened(path: Path) -> IO[bytes]:
    """Open a regular file to be read; of anything else nothing is read, and nothing waited for.

    Raises:
        ArtifactError: it is none, or cannot be opened.
    """
    try:
        return os.fdopen(open_regular(path), "rb")
    except OSError as error:
        raise ArtifactError(
            f"the artifact {path} cannot be opened: {error.strerror or error}. Write it with "
            "singlecard.export, or give the path of one that is there"
        ) from error


class Archive:
    """An artifact that is open to be read; a file that takes its name later is not this one."""

    def __init__(self, path: Path) -> None:
        """Open an artifact, and look where its members are; none is read.

        Raises:
            ArtifactError: there is no such file, or it is no whole artifact.
        """
        self.path = path
        self.expected: Mapping[str, Mapping[str, Any]] = {}
        self._checked: set[str] = set()
        self._file = _opened(path)
        try:
            with zipfile.ZipFile(self._file) as container:
                self._members = self._look(container)
                for name in (MANIFEST, SIGNATURE):
                    held = self._members.get(name)
                    if held is not None and held.length > MOST_MANIFEST:
                        raise self.damaged(
                            f"{name} has {held.length} bytes, and at most {MOST_MANIFEST} are read"
                        )
                self.manifest = container.read(MANIFEST)
                signed = SIGNATURE in self._members
                self.signature = container.read(SIGNATURE) if signed else None
        except KeyError as error:
            self._file.close()
            raise self.damaged(
                "it has no manifest, so singlecard.export did not write it"
            ) from error
        except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError) as error:
            self._file.close()
            why = f"it is cut short, or no artifact at all: {error}"
            raise self.damaged(why) from error
        except ArtifactError:
            self._file.close()
            raise

    def damaged(self, why: str) -> ArtifactError:
        """Return the error of a file that is not what was written."""
        return ArtifactError(f"the artifact {self.path} is damaged ({why}): {COPY_AGAIN}")

    def _look(self, container: zipfile.ZipFile) -> dict[str, Member]:
        members: dict[str, Member] = {}
        for info in container.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise self.damaged(f"{info.filename} is compressed or encrypted")
            if info.filename in members:
                raise self.damaged(f"it has {info.filename} twice")
            members[info.filename] = Member(
                info.filename, self._start(info.header_offset), info.file_size
            )
        return members

    def _start(self, header: int) -> int:
        """Return where a member's bytes begin: behind its header, name and extra field."""
        head = os.pread(self._file.fileno(), _HEADER, header)
        name, extra = struct.unpack_from("<HH", head, _HEADER - 4)
        return int(header + _HEADER + name + extra)

    def check_length(self, name: str) -> Member:
        """Return a member that is there and as long as the manifest says.

        Raises:
            ArtifactError: it is not.
        """
        member, expected = self._members.get(name), self.expected.get(name)
        if member is None or expected is None:
            raise self.damaged(f"{name} is missing")
        if member.length != expected["bytes"]:
            raise self.damaged(f"{name} has {member.length} bytes instead of {expected['bytes']}")
        return member

    @contextmanager
    def mapped(self, name: str) -> Iterator[memoryview]:
        """Map a member into memory; its length and checksum are those of the manifest.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        member, expected = self.check_length(name), self.expected[name]
        if not member.length:
            yield memoryview(b"")
            return
        start = member.offset - member.offset % mmap.ALLOCATIONGRANULARITY
        skipped = member.offset - start
        try:
            content = mmap.mmap(
                self._file.fileno(), skipped + member.length, access=mmap.ACCESS_READ, offset=start
            )
        except (ValueError, OSError) as error:
            raise self.damaged(f"{name} cannot be mapped: {error}") from error
        with content, memoryview(content) as whole, whole[skipped:] as view:
            if name not in self._checked:
                digest = blake3.blake3(view, max_threads=blake3.blake3.AUTO).hexdigest()
                if digest != expected["blake3"]:
                    raise self.damaged(f"the checksum of {name} differs")
                self._checked.add(name)
            yield view

    def read(self, name: str) -> bytes:
        """Return the bytes of a member; raises as `mapped`."""
        with self.mapped(name) as view:
            return bytes(view)

    def close(self) -> None:
        self._file.close()
