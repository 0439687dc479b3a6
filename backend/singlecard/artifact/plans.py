"""An engine in an artifact: its bytes are checked before TensorRT gets them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from singlecard.artifact.archive import Archive
from singlecard.engine import signing
from singlecard.errors import ArtifactError


@dataclass(frozen=True)
class StoredPlan:
    """A plan that is a member of an artifact.

    Attributes:
        archive: the artifact.
        member: the plan's name in it.
    """

    archive: Archive
    member: str

    @property
    def digest(self) -> str:
        """What names the engine in a cache."""
        return Path(self.member).stem

    @property
    def size(self) -> int:
        """Bytes that the plan has."""
        return int(self.archive.expected[self.member]["bytes"])

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
    head = bytes(view[: signing.HEAD])
    if not signing.is_of_rtx(head):
        return  # of the other flavour, which loads no code from plans unless told to
    try:
        signing.check_head(head, len(view))
    except signing.Refused as error:
        raise ArtifactError(
            f"{member} of the artifact {archive.path} {error}: it is not loaded. Get it from who "
            "exported it, or export the model again"
        ) from error
