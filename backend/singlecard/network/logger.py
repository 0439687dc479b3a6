"""A TensorRT logger that keeps what it is told and hands problems to Python's logging."""

from __future__ import annotations

import functools
import logging

from singlecard.network.flavour import trt

log = logging.getLogger("singlecard.tensorrt")


class Messages:
    """What TensorRT said, in order: ``(severity, text)`` with severities named as TensorRT does."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        #: What a callback raised, Ctrl-C too: TensorRT swallows it (1.7.1.116: and goes on).
        self.kept: BaseException | None = None

    def add(self, severity: str, text: str) -> None:
        self.entries.append((severity, text))
        log.debug("%s: %s", severity, text)

    def keep(self, error: BaseException) -> None:
        """Keep what a callback raised, for `raise_kept`; the first counts."""
        self.kept = self.kept or error

    def raise_kept(self) -> None:
        """Raise what a callback raised while TensorRT ran, if any did."""
        if self.kept is not None:
            kept, self.kept = self.kept, None
            raise kept

    def last_problem(self) -> str:
        """Return the newest error's text, or a plain sentence where TensorRT gave none."""
        for severity, text in reversed(self.entries):
            # Without a GPU every error is followed by a complaint about the CUDA driver.
            if severity in ("ERROR", "INTERNAL_ERROR") and "catchCudaError" not in text:
                return text.strip()
        return "TensorRT gave no reason"


@functools.cache
def _logger_class() -> type:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Forwards to `Messages`. TensorRT calls it from several threads."""

        def __init__(self, messages: Messages) -> None:
            super().__init__()
            self.messages = messages

        def log(self, severity: trt.ILogger.Severity, text: str) -> None:
            try:
                self.messages.add(severity.name, text)
            except BaseException as error:
                self.messages.keep(error)

    return Logger


def new_logger(messages: Messages) -> trt.ILogger:
    """Return a TensorRT logger that writes to ``messages``. Keep it as long as what it made."""
    return _logger_class()(messages)
