"""An engine in an artifact: its bytes are checked before TensorRT gets them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from singlecard.artifact.archive import Archive
from singlecard.engine import signing
from singlecard.errors import ArtifactError

_MOST = signing._MOST_SECTIONS


@dataclass(frozen=True)
class StoredPlan:
    """A plan that is a member of an artifact.

    Attributes:
        archive: the artifact.
        member: the plan's name in it.
    """

    archive: Archive
    member: str

    @contextmanager
    def mapped(self) -> Iterator[memoryview]:
        """Map the plan into memory.

        Raises:
            ArtifactError: it is damaged, or carries more than an engine and its weights.
        """
        with self.archive.mapped(self.member) as view:
            _check_contents(self.archive, self.member, view)
            yield view

    def __str__(self) -> str:
        return f"{self.member} of {self.archive.path}"


def _check_contents(archive: Archive, member: str, view: memoryview) -> None:
    """Refuse what `singlecard.engine.signing.check_plan` refuses of a plan's own file."""
    if not bytes(view[: len(signing._MAGIC)]) == signing._MAGIC:
        return  # of the other flavour, which loads no code from plans unless told to
    if len(view) < signing._HEADER:
        raise archive.damaged(f"{member} is cut short")
    count, length = struct.unpack_from("<QQ", view, len(signing._MAGIC))
    places = [signing._HEADER + signing._SECTION * at for at in range(min(count, _MOST))]
    names = {bytes(view[place : place + len(signing._LIBRARY)]) for place in places}
    if length != len(view) or not 1 <= count <= _MOST or names - signing._SECTIONS:
        raise ArtifactError(
            f"the artifact {archive.path} holds, in {member}, more than an engine and its weights, "
            "such as a library whose code would run: it is not loaded. Get it from who exported "
            "it, or export the model again"
        )
