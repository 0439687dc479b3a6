"""Names of cards, and which types each lacks: measured again on the real builder."""

from __future__ import annotations

import io

import pytest
import torch

from singlecard.errors import BuildError, TargetError
from singlecard.network.building import BuildSettings, build_plan
from singlecard.network.flavour import tensorrt
from singlecard.network.net import Net
from singlecard.targets import _LACKING, PORTABLE, TARGETS, check_types, parse_targets

SIZE = 32


def matmul(kind: str) -> Net:
    """A network with one matmul in a type; 8 and 4 bit types as quantize and dequantize."""
    net = Net()
    plain = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    dtype = plain.get(kind, torch.float16)
    x = net.input("x", dtype, (SIZE, SIZE))
    weight = net.constant(torch.ones(SIZE, SIZE, dtype=dtype))
    if kind in ("fp8", "int8"):
        data = getattr(tensorrt().DataType, kind.upper())
        scale = net.constant(torch.tensor(0.5, dtype=dtype))

        def rounded(value: object) -> object:
            quantized = net.add("quantize", value, scale.handle, data).get_output(0)
            return net.add("dequantize", quantized, scale.handle, x.handle.dtype).get_output(0)

        x, weight = net.wrap(rounded(x.handle)), net.wrap(rounded(weight.handle))
    net.mark_output(net.matmul(x, weight), "y")
    return net


def builds(kind: str, targets: tuple[str, ...]) -> bool:
    try:
        build_plan(matmul(kind), {}, BuildSettings(targets), io.BytesIO())
    except BuildError:
        return False
    return True


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_lacking_types_are_what_the_builder_lacks(kind: str, target: str) -> None:
    """A type that is refused for no reason, or let through to fail later, misleads the user."""
    assert builds(kind, (target,)) == (target not in _LACKING[kind])


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_common_types_build_everywhere(kind: str) -> None:
    """Types with no entry are promised for every card."""
    assert kind not in _LACKING
    assert all(builds(kind, (target,)) for target in ("sm75", "sm80", "sm121"))


def test_fp32_matmul_does_not_build_for_turing() -> None:
    """A T4 cannot run an FP32 model's products: precision="fp16" is the way, and docs say so."""
    assert not builds("fp32", ("sm75",))
    assert all(builds("fp32", (target,)) for target in PORTABLE)


def test_library_does_not_refuse_portable_fp8() -> None:
    """The library lets it through, to fail on an older card: that is why we refuse it."""
    assert builds("fp8", ())
    with pytest.raises(TargetError, match="a portable engine must also run on sm80, sm86"):
        check_types(["fp8"], ())


def test_refusal_names_type_target_and_way_out() -> None:
    """FP8 on an RTX 3090: say so before an hour of calibration, and say what can."""
    with pytest.raises(TargetError, match="fp8 is not available on target sm86: build for sm89"):
        check_types(["fp16", "fp8"], ("sm86", "sm89"))
    check_types(["fp16", "fp8"], ("sm89", "sm120"))
    check_types(["fp32", "fp16", "tf32"], TARGETS)


def test_every_target_is_one_of_the_librarys() -> None:
    """A target that the library does not know would fail while building."""
    known = tensorrt().ComputeCapability.__members__
    assert {target.upper() for target in TARGETS} <= set(known)
    assert set(PORTABLE) == set(TARGETS) - {"sm75"}


def test_parse() -> None:
    """Cards are named in many ways, and order and repetition must not make another engine."""
    assert (
        parse_targets("sm_89, SM86") == ("sm86", "sm89") == parse_targets(["sm89", "sm86", "sm89"])
    )
    assert parse_targets("portable") == ()
    with pytest.raises(TargetError, match="unknown target 'rtx4090'.*sm75, sm80"):
        parse_targets("rtx4090")
