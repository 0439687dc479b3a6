"""``singlecard.load``: an artifact becomes a callable with the contract of its model."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from singlecard import __version__
from singlecard.artifact.archive import COPY_AGAIN, MANIFEST, Archive
from singlecard.artifact.manifest import FORMAT, signature_refusal
from singlecard.artifact.plans import StoredPlan
from singlecard.artifact.programs import Interpreter, NotTrusted, UnknownOp
from singlecard.artifact.signature import Caller, signature_from_plain
from singlecard.artifact.structure import structure_from_text
from singlecard.artifact.tensors import read_tensor
from singlecard.capture.plain import NotPlain
from singlecard.engine.cache import Cache
from singlecard.engine.signing import read_key
from singlecard.errors import (
    ArtifactError,
    CacheError,
    FlavourError,
    OptionError,
    RuntimeFailure,
    SinglecardError,
)
from singlecard.network.flavour import flavour_name, flavour_version
from singlecard.options import Options, Specialization
from singlecard.precision.table import CalibrationTable
from singlecard.recipe import binding_from_plain, wiring_from_plain
from singlecard.report.origin import first_line
from singlecard.runtime.device import card_refusal, target_of
from singlecard.runtime.engine import EngineRunner, settings_of
from singlecard.runtime.executable import Executable
from singlecard.runtime.frozen import Frozen
from singlecard.runtime.ranged import in_range
from singlecard.runtime.runners import Runner
from singlecard.runtime.wiring import Constant
from singlecard.targets import PORTABLE

log = logging.getLogger("singlecard")


@dataclass(frozen=True)
class StoredEngine:
    """What is known of an engine in an artifact; None for what its builder did not tell."""

    digest: str
    bytes: int
    kernels: int | None
    scratch_bytes: int | None


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    signing_key: str | os.PathLike[str] | None = None,
    memory_budget: int | str | None = None,
    cuda_graphs: bool = False,
    specialization: Specialization = "lazy",
    cache_dir: str | os.PathLike[str] | None = None,
    trusted_ops: Collection[str] = (),
) -> Loaded:
    """Return what runs the model in an artifact of `singlecard.export`.

    Nothing of the model's source is needed, and nothing in the file is run as code. Engines are
    mapped from the file, and checked when they are first used.

    Args:
        path: the artifact.
        device: where its model runs. None: the current CUDA device if there is one, or the CPU.
        signing_key: a file with the secret that the artifact must be signed with. None:
            ``SINGLECARD_SIGNING_KEY``, which names a file, or no check.
        memory_budget, cuda_graphs, specialization: how engines run, see `singlecard.Options`. Only
            a model that was exported with some ``memory_budget`` can stream its weights.
        cache_dir: folder for kernels that TensorRT for RTX compiles on the card, which the next
            process finds there. None: ``SINGLECARD_CACHE`` or the user's cache folder.
        trusted_ops: full names of ops of other libraries that the model may call, such as
            ``torchvision.nms.default``: their code runs on what the file says. The library must be
            imported already.

    Raises:
        ArtifactError: the file is damaged, of another release, wrongly signed, or of another
            TensorRT.
        OptionError: the key's file cannot be used, or an option is not valid.
        FlavourError: it has engines, no program for the whole model, and TensorRT is missing.

    Example:
        >>> import torch, singlecard
        >>> model, args = torch.nn.Linear(8, 4).eval(), (torch.ones(2, 8),)
        >>> report = singlecard.export(model, args, path="linear.singlecard", fallback=True)
        >>> singlecard.load("linear.singlecard", device="cpu")(*args).shape
        torch.Size([2, 4])
    """
    given = {
        "memory_budget": memory_budget,
        "cuda_graphs": cuda_graphs,
        "specialization": specialization,
        "cache_dir": cache_dir,
    }
    options = Options.parse(given)
    if signing_key is not None and not os.fspath(signing_key):
        raise OptionError(
            "signing_key is '': name the file with the secret, or leave it out for no check"
        )
    archive = Archive(_path_of(path))
    try:
        key = signing_key or os.environ.get("SINGLECARD_SIGNING_KEY")
        if key:
            _check_signature(archive, read_key(Path(key).expanduser()))
        with _making_sense(archive, MANIFEST):
            manifest = _manifest(archive)
        where = torch.device(device) if device is not None else _usual_device()
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", torch.cuda.current_device())
        with _making_sense(archive, MANIFEST):
            return Loaded(archive, manifest, where, options, _names(trusted_ops))
    except BaseException:
        archive.close()
        raise


@contextmanager
def _making_sense(archive: Archive, member: str) -> Iterator[None]:
    """Turn what readers raise for values of another form into the error of a damaged file."""
    try:
        yield
    except SinglecardError:
        raise
    except _NO_SENSE as error:
        raise archive.damaged(f"its {member} makes no sense: {error!r}"[:500]) from error


#: What readers of plain values raise for what was not written by `export`.
_NO_SENSE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)


def _path_of(path: str | os.PathLike[str]) -> Path:
    """Return a path, with the folder of a user named by ``~`` where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is none
        return Path(path)


def _names(ops: Collection[str]) -> frozenset[str]:
    """Return the names of ops that were given.

    Raises:
        OptionError: it is something else.
    """
    if isinstance(ops, str) or not all(isinstance(name, str) for name in ops):
        raise OptionError(
            f"trusted_ops is {ops!r}: give a list of full names of ops, such as "
            "['torchvision.nms.default']"
        )
    return frozenset(ops)


def _usual_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_signature(archive: Archive, key: bytes) -> None:
    refusal = signature_refusal(archive.manifest, archive.signature, key)
    if refusal:
        raise ArtifactError(
            f"the artifact {archive.path} {refusal}. It is not loaded: export it again with the "
            "option signing_key, or load it with the key that it was signed with"
        )


def _manifest(archive: Archive) -> dict[str, Any]:
    try:
        manifest = json.loads(archive.manifest)
        found, versions = manifest["format"], dict(manifest["versions"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise archive.damaged(f"its manifest cannot be read: {error!r}") from error
    if found != FORMAT:
        age = "a newer" if isinstance(found, int) and found > FORMAT else "another"
        raise ArtifactError(
            f"the artifact {archive.path} has format {found}, of {age} release (singlecard "
            f"{versions.get('singlecard')}); this is singlecard {__version__}, which reads format "
            f"{FORMAT}: update singlecard, or export the model again with this one"
        )
    archive.expected = dict(manifest["members"])
    for name in archive.expected:
        archive.check_length(name)
    return manifest  # type: ignore[no-any-return]


class Loaded:
    """A model from an artifact: call it like the model.

    It computes no gradients. What the model keeps between calls, such as a cache, belongs to this
    object alone.

    Attributes:
        path: the artifact.
        device: where it runs.
        inputs: names of the leaves of the arguments, and what each takes.
        engines: the engines in it.
        targets: cards that they were built for; empty for portable ones.
        precision: what they compute with.
        versions: of singlecard, PyTorch and TensorRT that it was exported with.
        calibration: the calibration table, if there is one.
        refusal: why engines cannot run here, or None.
    """

    def __init__(
        self,
        archive: Archive,
        manifest: Mapping[str, Any],
        device: torch.device,
        options: Options,
        trusted: frozenset[str] = frozenset(),
    ) -> None:
        """Prepare to run; see `load`."""
        self._options, self._trusted = options, trusted
        self.path, self.device = archive.path, device
        self.versions: dict[str, str] = dict(manifest["versions"])
        self.targets: tuple[str, ...] = tuple(manifest["targets"])
        self.precision = str(manifest["precision"])
        self._archive, self._manifest = archive, manifest
        self.engines = tuple(
            StoredEngine(
                digest,
                int(manifest["members"][f"engines/{digest}.plan"]["bytes"]),
                *(
                    None if facts[name] is None else int(facts[name])
                    for name in ("kernels", "scratch_bytes")
                ),
            )
            for digest, facts in manifest["engines"].items()
        )
        signature = signature_from_plain(manifest["signature"])
        self.inputs = tuple((item.name, signature.describe(item)) for item in signature.inputs)
        self._caller = Caller(signature, str(self.path))
        self._results = structure_from_text(signature.results, f"the answers of {self.path}")
        self._varying = tuple(map(int, manifest["varying"]))
        self._passed = tuple((int(place), int(source)) for place, source in manifest["passed"])
        self._has_fallback = manifest["fallback"] is not None
        self.refusal = self._refusal()
        self._state = self._initial_state()
        # Calls of a model that writes to its own tensors take turns.
        self._turn = threading.Lock() if self._state else nullcontext()
        self._making = threading.Lock()
        self._executable = self._make_executable() if self.refusal is None else None
        self._whole: Executable | None = None
        self._told: set[str] = set()

    @property
    def calibration(self) -> CalibrationTable | None:
        name = self._manifest["calibration"]
        return (
            None
            if name is None
            else CalibrationTable.from_dict(json.loads(self._archive.read(name)))
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Raises:
            OptionError: the arguments are not those that the model was exported for.
            RuntimeFailure: engines cannot run them, and the artifact has no program of the model;
                or an op raises for them, such as for an index out of range.
            ArtifactError: the file turns out to be damaged.
        """
        try:
            return self._call(args, kwargs)
        except (SinglecardError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of an op, for these numbers, or of a file that lies
            raise RuntimeFailure(
                f"a call of {self.path} failed with {type(error).__name__}: {first_line(error)}. "
                "The model raises so for arguments that it cannot take, such as an index out of "
                f"range; for others, the file is not what was exported: {COPY_AGAIN}"
            ) from error

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        leaves = self._caller.leaves(args, kwargs)
        self._caller.check(leaves, self.device)
        with torch.no_grad(), self._turn:
            given = [*self._state.values(), *(leaves[place] for place in self._varying)]
            if self._executable is None:
                assert self.refusal is not None
                results = self._call_whole(given, self.refusal)
            else:
                try:
                    results = self._executable(given)
                except RuntimeFailure as error:
                    results = self._call_whole(given, str(error))
            for place, source in self._passed:
                results[place] = given[source]
            return pytree.tree_unflatten(results[: self._results.num_leaves], self._results)

    def check(self) -> None:
        """Compare every engine with its checksum now, instead of when it is first used.

        Raises:
            ArtifactError: the file is damaged.
        """
        for engine in self.engines:
            with StoredPlan(self._archive, f"engines/{engine.digest}.plan").mapped():
                pass

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors that calls write to, by the names that the model has for them."""
        return dict(self._state)

    def reset(self) -> None:
        """Give those tensors the values that they had when the model was exported."""
        with torch.no_grad(), self._turn:
            for name, value in self._initial_state().items():
                self._state[name].copy_(value)

    def _initial_state(self) -> dict[str, torch.Tensor]:
        return {
            str(held["name"]): read_tensor(self._archive, held, self.device)
            for held in self._manifest["state"]
        }

    def _refusal(self) -> str | None:
        """Return why engines cannot run; raise where it is no matter of cards."""
        if not self.engines:
            return None
        try:
            here = flavour_name(), flavour_version()
        except FlavourError as error:
            if not self._has_fallback:
                raise
            return str(error)
        built = self.versions["flavour"], self.versions["tensorrt"]
        if here != built:
            text = (
                f"the engines of the artifact {self.path} are for {' '.join(built)}, and this is "
                f"{' '.join(here)}: install that one, or export the model again with this one"
            )
            if not self._has_fallback:
                raise ArtifactError(text)
            return text
        refusal = card_refusal([torch.empty(0, device=self.device)])
        if refusal is not None:
            return refusal
        target, able = target_of(self.device), self.targets or PORTABLE
        if target not in able:
            return f"its engines are for {', '.join(able)}, and {self.device} is {target}"
        return None

    def _make_executable(self) -> Executable:
        steps = [self._runner(step) for step in self._manifest["steps"]]
        return self._wired(self._manifest, steps)

    def _wired(self, held: Mapping[str, Any], runners: list[Runner]) -> Executable:
        try:
            wiring = wiring_from_plain(held["wiring"])
        except NotPlain as error:
            raise ArtifactError(
                f"the artifact {self.path} asks for what this PyTorch ({torch.__version__}) does "
                f"not have ({error}); it was exported with PyTorch {self.versions['torch']}: "
                f"install that, or {COPY_AGAIN}"
            ) from error
        constants = {
            int(slot): Constant(self._tensor(kept), self.device)
            for slot, kept in held["constants"].items()
        }
        return Executable(dataclasses.replace(wiring, constants=constants), runners, Frozen([], []))

    def _tensor(self, held: Mapping[str, Any]) -> torch.Tensor:
        return read_tensor(self._archive, held, self.device)

    def _runner(self, step: Mapping[str, Any]) -> Runner:
        if "engine" not in step:
            return self._program(step["program"])
        binding = binding_from_plain(step["binding"])
        binding = dataclasses.replace(binding, device=self.device)
        plan = StoredPlan(self._archive, step["engine"])
        whole = sum(engine.bytes for engine in self.engines)
        settings = settings_of(self._options, plan.size, whole)
        kernels = functools.partial(self._kernels, plan)
        runner = EngineRunner(plan, binding, settings=settings, kernels=kernels)
        return in_range(runner, binding, None)

    def _kernels(self, plan: StoredPlan) -> tuple[Path, str] | None:
        """Return where kernels that are compiled for an engine are kept; None: nowhere."""
        cache = Cache(self._options.cache_dir)
        try:
            cache.open()
        except CacheError as error:
            log.info("kernels that are compiled for %s are not kept: %s", plan, error)
            return None
        return cache.engines, plan.digest

    def _program(self, name: str) -> Interpreter:
        try:
            held = json.loads(self._archive.read(name))
            return Interpreter(held, self._tensor, self.device, self._trusted)
        except NotTrusted as error:
            raise ArtifactError(
                f"{name} of the artifact {self.path} calls {error}, an op of another library, "
                "whose code would run: import the library, and name the op in "
                f"singlecard.load(..., trusted_ops=[{str(error)!r}]) if you trust who exported it"
            ) from error
        except UnknownOp as error:
            raise ArtifactError(
                f"{name} of the artifact {self.path} calls {error}, which nothing has registered "
                "in this process: import the library that defines it (torchvision, say) before "
                f"singlecard.load, or install PyTorch {self.versions['torch']}"
            ) from error
        except NotPlain as error:
            raise ArtifactError(
                f"the artifact {self.path} holds, in {name}, {error}, which singlecard.export does "
                "not write: it is not loaded. Get it from who exported it, or export the model "
                "again"
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._archive.damaged(f"{name} cannot be read: {error!r}"[:300]) from error

    def _call_whole(self, given: Sequence[Any], reason: str) -> list[Any]:
        """Run the model in PyTorch, and say so once."""
        if not self._has_fallback:
            raise RuntimeFailure(
                f"the artifact {self.path} cannot run: {reason}. Run it where its engines can, or "
                "export the model with fallback=True, for PyTorch to answer"
            )
        if reason not in self._told:
            self._told.add(reason)
            log.warning("%s: the model of %s runs in PyTorch", reason, self.path)
        with self._making:
            if self._whole is None:
                with _making_sense(self._archive, "fallback"):
                    held = self._manifest["fallback"]
                    programs: list[Runner] = [self._program(name) for name in held["steps"]]
                    self._whole = self._wired(held, programs)
        return self._whole(given)

    def __str__(self) -> str:
        from singlecard.artifact.table import loaded_table
        from singlecard.report.tables import text_of

        return text_of(loaded_table(self))
