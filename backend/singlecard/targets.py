"""Names of the cards that engines are built for, and the types each can compute with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from singlecard.errors import TargetError

#: Compute capabilities that TensorRT for RTX 1.7 builds for, as its ComputeCapability enum.
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")

#: Without targets an engine is portable over these cards.
PORTABLE = ("sm80", "sm86", "sm89", "sm120", "sm121")

#: Types that not every card has, with the cards that lack them (measured with tensorrt_rtx
#: 1.7.1.116 by building one matmul for each; `tests/test_targets.py` measures again).
_LACKING = {
    "bf16": ("sm75",),
    "fp8": ("sm75", "sm80", "sm86"),
    "int4": ("sm75",),
    "fp4": ("sm75", "sm80", "sm86", "sm89"),
}


def parse_targets(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return target names in order of age, each once.

    ``given`` is a sequence of names or one string with commas; ``"portable"`` means none.

    Raises:
        TargetError: a name is unknown.
    """
    names = given.split(",") if isinstance(given, str) else list(given)
    names = [str(name).strip().lower().replace("sm_", "sm") for name in names if str(name).strip()]
    if names == ["portable"]:
        return ()
    if "portable" in names:
        others = ", ".join(name for name in names if name != "portable")
        raise TargetError(
            f"targets names portable beside {others}: name cards, or portable alone, which runs on "
            f"{', '.join(PORTABLE)}"
        )
    for name in names:
        if name not in TARGETS:
            close = difflib.get_close_matches(name, TARGETS, 1, 0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise TargetError(
                f"unknown target {name!r}: {hint}Engines can be built for "
                f"{', '.join(TARGETS)}, or portable"
            )
    return tuple(target for target in TARGETS if target in names)


def check_types(types: Iterable[str], targets: Sequence[str]) -> None:
    """Refuse types that a target lacks; no targets means the portable set.

    TensorRT itself does not refuse FP8 in a portable engine, which then fails on an older card.

    Raises:
        TargetError: names the type, the target and the way out.
    """
    for kind in types:
        lacking = [target for target in targets or PORTABLE if target in _LACKING.get(kind, ())]
        if lacking:
            able = [target for target in TARGETS if target not in _LACKING[kind]]
            whose = "a portable engine must also run on" if not targets else "target"
            raise TargetError(
                f"{kind} is not available on {whose} {', '.join(lacking)}: "
                f"build for {', '.join(able)} or choose another precision"
            )
