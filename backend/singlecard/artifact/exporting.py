"""``singlecard.export``: a model, captured, built and written to one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.fx.experimental import proxy_tensor

from singlecard.artifact.archive import MANIFEST, SIGNATURE, Writer, check_folder, writing
from singlecard.artifact.captured import Captured, Whole, capture_model
from singlecard.artifact.manifest import (
    CALIBRATION,
    FORMAT,
    MODEL,
    engine_member,
    program_member,
    sign,
    versions,
)
from singlecard.artifact.remainder import segment_to_plain
from singlecard.artifact.signature import signature_to_plain
from singlecard.artifact.tensors import Adder
from singlecard.capture.plain import NotPlain
from singlecard.checking import flag_from, path_from
from singlecard.engine.build import Engine
from singlecard.engine.cache import Cache
from singlecard.engine.signing import read_key
from singlecard.errors import ArtifactError, CacheError
from singlecard.network.building import Progress
from singlecard.options import Options
from singlecard.partition import Fallback
from singlecard.recipe import binding_to_plain, wiring_to_plain
from singlecard.report.doors import enter


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    Attributes:
        path: the artifact.
        bytes: its size.
        engines: the engines in it.
        programs: number of parts of the model that run in PyTorch.
        ops, lowered_ops: how many ops were captured, and how many of them engines compute.
        left_out: the ops that stay in PyTorch, and why.
        fallback: whether the whole model is in it as a program of PyTorch's.
        signed: whether it is signed.
        inputs: for each input, its name and what it takes.
        remarks: what a user should know of it.
        timings: seconds by stage.
    """

    path: Path
    bytes: int
    engines: tuple[Engine, ...]
    programs: int
    ops: int
    lowered_ops: int
    left_out: tuple[Fallback, ...]
    fallback: bool
    signed: bool
    inputs: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    timings: dict[str, float]

    @property
    def coverage(self) -> float:
        """Share of the model's ops that engines compute, 0 to 1."""
        return self.lowered_ops / self.ops if self.ops else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "ops": self.ops,
            "coverage": self.coverage,
            "fallback": [[item.op, item.reason, item.line] for item in self.left_out],
            "engines": [
                {
                    "digest": engine.digest,
                    "built": engine.built,
                    "kernels": engine.report.kernel_count,
                    "engine_bytes": engine.report.engine_bytes,
                    "scratch_bytes": engine.report.scratch_bytes,
                }
                for engine in self.engines
            ],
            "programs": self.programs,
            "whole_model": self.fallback,
            "signed": self.signed,
            "inputs": dict(self.inputs),
            "remarks": list(self.remarks),
            "timings": self.timings,
        }

    def __str__(self) -> str:
        from singlecard.artifact.table import export_table
        from singlecard.report.tables import text_of

        return text_of(export_table(self))


def export(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    dynamic_shapes: Any = None,
    options: Mapping[str, Any] | Options | None = None,
    fallback: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model to one file that `singlecard.load` runs without the model's source.

    The file has the engines for ``options["targets"]`` (portable where none are given), what stays
    in PyTorch as lists of calls in plain data, the types and sizes of inputs, the calibration
    table, and versions. It has no pickle and no code. No GPU is needed.

    Args:
        model: a model, or any function of tensors.
        args: example arguments; they are copied, and not changed.
        kwargs: example keyword arguments.
        path: the file to write, such as ``"model.singlecard"``. One that is there stays as it is
            until the new one is whole.
        dynamic_shapes: axes that vary, as for `singlecard.verify`; an integer argument takes a
            range too.
        options: see `singlecard.Options`. With ``signing_key`` the file is signed.
        fallback: put the whole model in as a program of PyTorch's too, which answers where engines
            cannot run. The file grows by the model's weights.
        progress: called with the builder's phase, the steps done and the steps in all.

    Raises:
        ArtifactError: ``torch.export`` cannot capture the model, something in it cannot be written
            without code, or the file cannot be written.
        OptionError: an option, an argument or a range is not valid, or the model is in training
            mode.
        SinglecardError: with ``strict=True``, whatever stands in the way of lowering everything.

    Example:
        >>> import torch, singlecard
        >>> model, args = torch.nn.Linear(8, 4).eval(), (torch.ones(2, 8),)
        >>> report = singlecard.export(model, args, path="linear.singlecard")
        >>> report.coverage
        1.0
    """
    if path is None:
        raise ArtifactError(
            "export needs a file to write: give path='model.singlecard', or another name"
        )
    flag_from("fallback", fallback)
    target = path_from("path", path, "a file to write")
    check_folder(target)
    entrance = enter(model, args, kwargs, dynamic_shapes, options)
    chosen = entrance.options
    key = _key(chosen)
    Cache(chosen.cache_dir).open()
    with _forgetting_nodes():
        captured = capture_model(entrance, progress, fallback)
        with writing(target) as writer:
            manifest = _write(writer, captured, chosen)
            content = json.dumps(manifest, indent=1, sort_keys=True).encode()
            writer.add(MANIFEST, content)
            if key is not None:
                writer.add(SIGNATURE, sign(content, key))
    signature = captured.signature
    return ExportReport(
        target,
        target.stat().st_size,
        tuple(captured.graph.engines),
        sum(not segment.lowered for segment in captured.segments),
        captured.graph.ops,
        captured.graph.lowered_ops,
        tuple(captured.graph.fallback),
        fallback,
        key is not None,
        tuple((item.name, signature.describe(item)) for item in signature.inputs),
        tuple(map(_remark, captured.changed)),
        captured.timings,
    )


@contextmanager
def _forgetting_nodes() -> Iterator[None]:
    """Let go of what PyTorch 2.13 keeps of the last export: nodes, and with them its weights."""
    try:
        yield
    finally:
        getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()


def _remark(argument: str) -> str:
    return (
        f"the model puts other numbers or tensors into its argument {argument}: the artifact only "
        "writes to the tensors that are there. Use what it returns instead"
    )


def _key(options: Options) -> bytes | None:
    """Return the signing key that was given, or that the environment names.

    Raises:
        OptionError: its file cannot be used.
    """
    given = options.signing_key or os.environ.get("SINGLECARD_SIGNING_KEY")
    return read_key(Path(given).expanduser()) if given else None


def _write(writer: Writer, captured: Captured, options: Options) -> dict[str, Any]:
    """Add all members but the manifest; return that.

    Raises:
        ArtifactError: something cannot be written without code.
    """
    graph, table = captured.graph, options.calibration
    engines, bindings = iter(graph.engines), iter(graph.bindings)
    steps: list[dict[str, Any]] = []
    add = Adder(writer)
    for number, segment in enumerate(captured.segments):
        if segment.lowered:
            engine, binding = next(engines), next(bindings)
            name = _add_engine(writer, engine, options)
            steps.append({"engine": name, "binding": binding_to_plain(binding)})
        else:
            what = "the part of the model that stays in PyTorch"
            plain = segment_to_plain(captured.program, segment, add, what)
            steps.append({"program": writer.add(program_member(number), _json(plain))})
    if table is not None:
        writer.add(CALIBRATION, json.dumps(table.to_dict(), indent=1).encode())
    try:
        whole = None if captured.whole is None else _add_whole(writer, captured.whole, add)
        wiring = wiring_to_plain(captured.wiring)
        signature = signature_to_plain(captured.signature)
    except NotPlain as error:
        raise ArtifactError(
            f"the model needs what an artifact cannot say ({error}): use torch.compile"
        ) from error
    return {
        "format": FORMAT,
        "versions": versions(bool(graph.engines)),
        "targets": list(options.targets or ()),
        "precision": options.precision,
        "signature": signature,
        "wiring": wiring,
        "constants": {
            str(slot): add(constant.value) for slot, constant in captured.wiring.constants.items()
        },
        "state": [{"name": name, **add(value)} for name, value in captured.state.items()],
        "varying": list(captured.varying),
        "passed": [list(pair) for pair in captured.passed],
        "steps": steps,
        "engines": {
            engine.digest: {
                "kernels": engine.report.kernel_count,
                "scratch_bytes": engine.report.scratch_bytes,
            }
            for engine in graph.engines
        },
        "ops": graph.ops,
        "lowered_ops": graph.lowered_ops,
        "fallback": whole,
        "calibration": None if table is None else CALIBRATION,
        "members": writer.members,
    }


def _add_whole(writer: Writer, whole: Whole, add: Adder) -> dict[str, Any]:
    """Add the whole model as PyTorch runs it; return how its parts hang together.

    Raises:
        NotPlain: wiring has no words for what it needs.
        ArtifactError: see `segment_to_plain`.
    """
    members = []
    for number, segment in enumerate(whole.segments):
        plain = segment_to_plain(whole.program, segment, add, "the model")
        members.append(writer.add(program_member(number, MODEL), _json(plain)))
    constants = {str(slot): add(held.value) for slot, held in whole.wiring.constants.items()}
    return {"wiring": wiring_to_plain(whole.wiring), "constants": constants, "steps": members}


def _json(plain: Any) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode()


def _add_engine(writer: Writer, engine: Engine, options: Options) -> str:
    """Add an engine's plan, which other processes may be removing from the cache just now."""
    name = engine_member(engine.digest)
    if name not in writer.members:
        entry = Cache(options.cache_dir).find(engine.digest)
        if entry is None:
            raise CacheError(
                f"the engine {engine.plan} was removed while the model was exported: give the "
                "cache more room (cache_limit, SINGLECARD_CACHE_LIMIT), and export again"
            )
        writer.add(name, entry.plan)
    return name
