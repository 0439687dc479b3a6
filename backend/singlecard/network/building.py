"""The builder's side of the facade: a config from plain settings, a plan from a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from singlecard.errors import BuildError
from singlecard.network.flavour import trt
from singlecard.network.logger import Messages
from singlecard.network.net import Net
from singlecard.network.timings import Timings, TimingStore
from singlecard.network.versions import set_targets

#: What TensorRT says where a network does not go together with an end of its profile (1.7.1:
#: "kOPT values for profile 0 violate shape constraints: ...").
_OF_RANGES = "violate shape constraints"


class RangeRefused(BuildError):
    """A network cannot have the sizes of its profile."""


class Ranged(Protocol):
    """The range of a dynamic input."""

    @property
    def smallest(self) -> tuple[int, ...]: ...

    @property
    def usual(self) -> tuple[int, ...]: ...

    @property
    def largest(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class BuildSettings:
    """What, beside the network, decides a plan.

    Attributes:
        targets: compute capabilities, such as ``("sm89",)``; empty means portable.
        tf32: let FP32 matrix products and convolutions round to TF32.
        workspace_bytes: limit for scratch memory, or None.
        sparse_weights: let the builder use kernels for weights with 2:4 sparsity.
        weight_streaming: make a plan whose weights may stay in host memory until they are needed.
    """

    targets: tuple[str, ...] = ()
    tf32: bool = False
    workspace_bytes: int | None = None
    sparse_weights: bool = False
    weight_streaming: bool = False

    def parts(self) -> dict[str, str]:
        """Return the settings as named texts, for a digest."""
        return {
            "targets": ",".join(self.targets) or "portable",
            "tf32": str(self.tf32),
            "workspace_bytes": str(self.workspace_bytes),
            "sparse_weights": str(self.sparse_weights),
            "weight_streaming": str(self.weight_streaming),
        }


#: Called with the phase's name, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


@functools.cache
def _monitor_class() -> type:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Hands the builder's phases to a callback, and stops the builder where that raises.

        Without a callback it is there for Ctrl-C, which Python raises in the next line it runs.
        """

        def __init__(self, report: Progress | None, messages: Messages) -> None:
            super().__init__()
            self.report, self.messages = report, messages
            self.steps: dict[str, int] = {}

        def _tell(self, name: str, done: int, steps: int) -> bool:
            try:
                if self.report is not None:
                    self.report(name, done, steps)
            except BaseException as error:
                self.messages.keep(error)
            return self.messages.kept is None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            self._tell(name, 0, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return self._tell(name, step + 1, self.steps.get(name, 0))

        def phase_finish(self, name: str) -> None:
            steps = self.steps.pop(name, 0)
            self._tell(name, steps, steps)

    return Monitor


@functools.cache
def _writer_class() -> type:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        """Hands the plan to a file piece by piece, so that it is never whole in memory."""

        def __init__(self, file: BinaryIO, messages: Messages) -> None:
            super().__init__()
            self.file, self.messages = file, messages

        def write(self, data: Any) -> int:
            try:
                return self.file.write(data)
            except BaseException as error:
                self.messages.keep(error)
                return 0

    return Writer


def build_plan(
    net: Net,
    profiles: Mapping[str, Ranged],
    settings: BuildSettings,
    file: BinaryIO,
    progress: Progress | None = None,
    timings: TimingStore | None = None,
) -> Sequence[tuple[str, str]]:
    """Build a network and write the plan to ``file``; return what the builder logged.

    Args:
        net: the network.
        profiles: the range of each dynamic input, by name.
        settings: what else decides the plan.
        file: gets the plan.
        progress: told of the builder's phases.
        timings: where timings of kernels are kept, for a builder that measures them.

    Raises:
        RangeRefused: the network cannot have these ranges.
        BuildError: TensorRT refused, with its own words.
        OSError: the file could not be written.
        BaseException: what ``progress`` raises, and Ctrl-C.
    """
    config = net.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    set_targets(config, settings.targets)
    if settings.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.sparse_weights:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if settings.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if profiles:
        profile = net.builder.create_optimization_profile()
        for name, span in profiles.items():
            profile.set_shape(name, span.smallest, span.usual, span.largest)
        config.add_optimization_profile(profile)
    timed = None if timings is None else Timings(config, timings)
    monitor = _monitor_class()(progress, net.messages)
    config.progress_monitor = monitor
    first = len(net.messages.entries)
    writer = _writer_class()(file, net.messages)
    done = net.builder.build_serialized_network_to_stream(net.definition, config, writer)
    net.messages.raise_kept()
    if not done:
        problem = net.messages.last_problem()
        kind = RangeRefused if _OF_RANGES in problem else BuildError
        raise kind(f"TensorRT could not build the network: {problem}")
    if timed is not None:
        timed.save()
    return net.messages.entries[first:]
