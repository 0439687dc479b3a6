"""Names in options that nothing of a model has: said at once, with the nearest that it has.

A name is judged where enough is known. A door that is given a model knows its modules before any
work; a graph that is all of what was compiled knows every op. Of a model that is cut by graph
breaks each graph knows a part, so that only the modules of the whole model are asked: a name that
fits no op of one graph may fit one of another. A door sees all graphs in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import fx, nn

from singlecard.axes import nearest
from singlecard.capture.program import Program
from singlecard.capture.scope import Scope, paths_of
from singlecard.errors import OptionError
from singlecard.lowering.call import op_name
from singlecard.options import Options
from singlecard.partition.exclusion import exclusion
from singlecard.precision.points import is_named, names_of
from singlecard.warning import warn_once

#: Names that a message lists where none is near.
_LISTED = 5


def unmatched_modules(options: Options, scope: Scope) -> dict[str, str]:
    """Return a sentence for each name of options that leads to no module, by option and name."""
    if not scope.modules:
        return {}
    found: dict[str, str] = {}
    for pattern in options.exclude_modules:
        if not _any_module(pattern, scope.modules):
            found[f"exclude_modules {pattern}"] = (
                f"option exclude_modules names {pattern!r}, which no module of {scope.model} "
                f"matches: {_instead(pattern, scope.modules)}"
            )
    for name in options.keep_fp32:
        path = name.partition(":")[0]
        if path not in scope.modules and path != "model":
            found[f"keep_fp32 {name}"] = (
                f"option keep_fp32 names {name!r}, and {scope.model} has no module {path!r}: "
                f"{_instead(path, scope.modules)}"
            )
    return found


def unmatched_names(program: Program, options: Options, scope: Scope) -> dict[str, str]:
    """Return a sentence for each name of options that no op of a Program has.

    Args:
        program: simplified, so that its ops have the names that ``explain`` shows.
        options: the names.
        scope: its modules count too: one without ops, such as dropout, is there all the same.
    """
    if not (options.exclude_modules or options.exclude_ops or options.keep_fp32):
        return {}
    nodes = [node for node in program.calls() if isinstance(node.target, torch._ops.OperatorBase)]
    found: dict[str, str] = {}

    def any_op(reason: Callable[[fx.Node], str | None]) -> bool:
        return any(reason(node) for node in nodes)

    for pattern in options.exclude_modules:
        if not (_any_module(pattern, scope.modules) or any_op(exclusion((), (pattern,)))):
            found[f"exclude_modules {pattern}"] = (
                f"option exclude_modules names {pattern!r}, which no module of {scope.model} "
                f"matches: {_instead(pattern, scope.modules)}"
            )
    for name in options.exclude_ops:
        if not any_op(exclusion((name,), ())):
            ops = dict.fromkeys(map(op_name, nodes))
            found[f"exclude_ops {name}"] = (
                f"option exclude_ops names {name!r}, which no op of {scope.model} is: "
                f"{_instead(name, ops)}"
            )
    names = list(names_of(program).values()) if options.keep_fp32 else []
    for name in options.keep_fp32:
        if name not in scope.modules and not any(is_named(item, (name,)) for item in names):
            found[f"keep_fp32 {name}"] = (
                f"option keep_fp32 names {name!r}, which no op of {scope.model} is, and no module: "
                f"{_instead(name, names if ':' in name else [*scope.modules, *names])}"
            )
    return found


def tell_unmatched(sentences: Iterable[str], options: Options) -> None:
    """Warn once of each name, or raise with ``strict=True``.

    Raises:
        OptionError: as above.
    """
    for sentence in sentences:
        if options.strict:
            raise OptionError(sentence)
        warn_once(sentence)


def tell_of_model(model: object, options: Options) -> None:
    """Tell which names lead to no module of a model, before any work.

    What a function calls, and modules that an exported program had, only its graph can tell.

    Raises:
        OptionError: with ``strict=True``.
    """
    if not isinstance(model, nn.Module) or isinstance(model, fx.GraphModule):
        return
    if options.exclude_modules or options.keep_fp32:
        scope = Scope(model=type(model).__name__, modules=paths_of([model]))
        tell_unmatched(unmatched_modules(options, scope).values(), options)


def tell_of_all(graphs: Sequence[Mapping[str, str]], options: Options) -> None:
    """Tell which names fit in none of a model's graphs, each of which has told what it lacks.

    Raises:
        OptionError: with ``strict=True``.
    """
    if graphs:
        common = [key for key in graphs[0] if all(key in other for other in graphs)]
        tell_unmatched((graphs[0][key] for key in common), options)


def _any_module(pattern: str, modules: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for path in modules)


def _instead(name: str, names: Iterable[str]) -> str:
    known = list(dict.fromkeys(names))
    hint = nearest(name.replace("*", "").strip("."), known).strip()
    if hint or not known:
        return hint or "it has none"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"it has {', '.join(known[:_LISTED])}{more}"
