"""One job in a process of its own: what it does wrong, and what it takes, ends with it.

Lines of JSON go to standard output, the job and then permission to build come from standard input.
What the model prints goes to standard error. When the other end goes away, so does this process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from singlecard.axes import axes_of_input, remarks_on
from singlecard.engine.cache import Cache
from singlecard.errors import SinglecardError
from singlecard.offline.memory import held_memory
from singlecard.options import Options
from singlecard.report.model import load_model


def main() -> int:
    """Do the job that standard input gives; return the exit status."""
    given, answers = _channel()
    request = json.loads(given.readline())
    go = threading.Event()
    threading.Thread(target=_watch, args=(given, go), daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        held, peak = held_memory()
        answers.write(json.dumps({**message, "held": held, "peak": peak}) + "\n")
        answers.flush()

    try:
        send({"done": _build(request, send, go)})
    except SinglecardError as error:
        send({"failed": " ".join(str(error).split()), "known": True})
        return 2
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        send({"failed": f"{type(error).__name__}: {error}", "known": False})
        return 3
    return 0


def _channel() -> tuple[IO[str], IO[str]]:
    """Keep the pipes to the parent for ourselves: models print, and may read."""
    given, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return given, answers


def _watch(given: IO[str], go: threading.Event) -> None:
    for _ in given:
        go.set()
    os._exit(1)  # the parent is gone


def _build(request: dict[str, Any], send: Any, go: threading.Event) -> dict[str, Any]:
    os.chdir(request["folder"])
    logging.getLogger("singlecard").setLevel(logging.ERROR)  # why ops stay is in the answer
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # an error that it raises it logs too
    options = Options.parse(request["options"])
    shapes = {name: axes_of_input(name, text) for name, text in request["shapes"].items()}
    model = load_model(request["model"])
    send({"weights": _weights(model.module)})
    go.wait()
    # Seconds of imports, and memory, that a model which does not load need not take.
    from singlecard.offline.built import built_document
    from singlecard.offline.fitting import compile_fitted
    from singlecard.offline.parts import parts_now

    Cache(options.cache_dir).open()
    compiled = compile_fitted(model, shapes, options, None)
    targets = ",".join(options.targets or ()) or "portable"
    return {
        "document": built_document(request["model"], compiled, targets, remarks_on(shapes)),
        "parts": parts_now(Path(path) for path in request["files"]),
    }


def _weights(module: Any) -> int:
    """Return the bytes of a model's parameters and buffers, shared ones once."""
    import torch

    if not isinstance(module, torch.nn.Module):
        return 0
    tensors = {id(item): item for item in (*module.parameters(), *module.buffers())}
    return sum(item.nbytes for item in tensors.values() if item.device.type == "cpu")


if __name__ == "__main__":
    sys.exit(main())
