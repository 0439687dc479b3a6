"""MODEL on the command line: from ``path.py:function`` or a ``.pt2`` file to a model."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from singlecard.errors import ModelError
from singlecard.report.origin import first_line, place_of

_RETURNS = "(module, args) or (module, args, kwargs)"
_WANTED = f"it must return {_RETURNS}"


@dataclass(frozen=True)
class Model:
    """A model with example arguments.

    Attributes:
        name: MODEL as it was given.
        module: what is called.
        args, kwargs: example arguments.
        dynamic_shapes: axes that vary, for `singlecard.verify`; None where all shapes are fixed.
    """

    name: str
    module: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: dict[str, Any] | None = None


def load_model(spec: str) -> Model:
    """Return the model that MODEL leads to.

    Args:
        spec: ``path.py:function``, ``package.module:function`` or the path of a ``.pt2`` file.

    Raises:
        ModelError: it leads nowhere, or to something that is no model.
    """
    if spec.endswith(".pt2"):
        from singlecard.report.exported import load_exported

        return load_exported(Path(spec))
    return _model_from(spec, call_named(spec))


def call_named(spec: str, what: str = "MODEL", returns: str = _RETURNS) -> Any:
    """Return what the function that a command names returns.

    Args:
        spec: ``path.py:function`` or ``package.module:function``.
        what: the argument's name, and
        returns: what the function should return; both for messages.

    Raises:
        ModelError: there is no such function, or it raises.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        pt2 = ", or name a .pt2 file" if what == "MODEL" else ""
        raise ModelError(
            f"{what} {spec!r} names no function: write path.py:function or "
            f"package.module:function{pt2}"
        )
    module = _module_from_file(Path(source)) if source.endswith(".py") else _module_from(source)
    function = _function_of(module, name, source, returns)
    with blaming(f"the function {name} of {source} raised"):
        return function()


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = path.parent.glob("*.py") if path.parent.is_dir() else ()
        close = difflib.get_close_matches(path.name, [file.name for file in near], 1)
        hint = f"did you mean {path.with_name(close[0])}?" if close else "name an existing file"
        raise ModelError(f"there is no file {path} (looked for {path.absolute()}): {hint}")
    _search(path.parent)
    # A name of its own, so that a file called torch.py hides nothing.
    name = f"singlecard_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # only unknown suffixes have none
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up while it is imported
    with blaming(f"importing {path} raised"):
        spec.loader.exec_module(module)
    return module


def _module_from(name: str) -> ModuleType:
    _search(Path())
    try:
        with blaming(f"importing {name} raised"):
            return importlib.import_module(name)
    except ModelError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name is not None:
            if name == missing.name or name.startswith(f"{missing.name}."):
                raise ModelError(
                    f"there is no module {missing.name}: write its dotted name as for 'import', "
                    "start in the folder that holds it, or give a file as path.py:function"
                ) from missing
        raise


def _search(folder: Path) -> None:
    """Let a file import its neighbours, now and when it runs, as ``python file.py`` does."""
    place = str(folder.absolute())
    if place not in sys.path:
        sys.path.insert(0, place)


def _function_of(module: ModuleType, name: str, source: str, returns: str) -> Callable[[], Any]:
    function = getattr(module, name, None)
    if function is None:
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        close = difflib.get_close_matches(name, own, 1)
        listed = f"it has {', '.join(own)}" if own else "it has none"
        hint = f"did you mean {close[0]}?" if close else listed
        raise ModelError(f"{source} has no function {name}: {hint}")
    if not callable(function):
        raise ModelError(
            f"{name} of {source} is {_described(function)}: name a function that returns {returns}"
        )
    needed = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ModelError(
            f"{name} of {source} wants arguments ({', '.join(needed)}): name a function that "
            f"takes none and returns {returns}"
        )
    return function  # type: ignore[no-any-return]


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into one sentence that names its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        cure = "Install what it needs" if isinstance(error, ImportError) else "Correct that line"
        raise ModelError(
            f"{what} {type(error).__name__} at {place_of(error)}: {first_line(error)}. "
            f"{cure}; --debug shows the traceback"
        ) from error


def _model_from(spec: str, made: Any) -> Model:
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise ModelError(f"{spec} returned {_described(made)}: {_WANTED}")
    module, args = made[:2]
    kwargs = made[2] if len(made) == 3 else {}
    if not callable(module):
        raise ModelError(f"{spec} returned {_described(module)} as the module: {_WANTED}")
    if not isinstance(args, (tuple, list)):
        raise ModelError(
            f"{spec} returned {_described(args)} as args: write a tuple, such as (module, (x,))"
        )
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise ModelError(
            f"{spec} returned {_described(kwargs)} as kwargs: write a dict from parameter names "
            "to values"
        )
    return Model(spec, module, tuple(args), dict(kwargs))


def _described(value: Any) -> str:
    """Return what a value is: ``None``, ``a Tensor``, ``a tuple of 4``."""
    if value is None:
        return "None"
    size = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}{size}"
