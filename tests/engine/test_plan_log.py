"""What the parser does with lines it knows, and with lines it does not."""

from __future__ import annotations

import pytest

from singlecard.engine.plan_log import KernelTensor, parse_plan_log, read_totals
from singlecard.errors import BuildError

TENSOR = (
    "{ Name: x, Dimensions: [64,256], Strides: [256,1], StrideOrder: [1,0], Datatype: Half, "
    "Format: (Linear) Row major linear format }"
)
KERNEL = (
    f"Name: fc_myl0_0, LayerType: gemm, Inputs: [ {TENSOR}], Constants: [], "
    f"Outputs: [ {TENSOR.replace('x,', 'y,')}], TacticName: , StreamId: 0, "
    "Metadata: [fc/aten.linear]"
)
NETWORK = (
    "I/O Tensors:\n Name: x, IOMode: Input, DataType: Half, Dimensions: [64,256], Location: Device,"
    " IsShapeInferenceIO: false, ProfileInfo: [ { MinShape: [64,256], OptShape: [64,256], "
    "MaxShape: [64,256], Format: Row major linear FP16 format (kLINEAR) }]\n\n"
    "Engine Metadata:\n Multi-Device: Disabled"
)
TOTALS = [
    ("INFO", "Total Activation Memory: 512 bytes"),
    ("INFO", "Total Weights Memory: 256 bytes"),
]


def log_of(*lines: str) -> list[tuple[str, str]]:
    return [*TOTALS, ("VERBOSE", "Layers:\n" + "\n".join(lines) + "\n\n" + NETWORK)]


def test_a_plain_plan_is_read() -> None:
    """Else nothing below means anything."""
    log = parse_plan_log(log_of(KERNEL))
    (entry,) = log.entries
    assert (entry.name, entry.kind, entry.metadata) == ("fc_myl0_0", "gemm", "[fc/aten.linear]")
    assert entry.inputs == (KernelTensor("x", (64, 256), (256, 1), "Half"),)
    assert (log.scratch_bytes, log.weights_bytes) == (512, 256)
    assert log.network_tensors[0].ranges == (((64, 256),) * 3,)


def test_the_last_build_of_a_logger_counts() -> None:
    """Else a second engine built with one logger is described by the first."""
    old = log_of(KERNEL.replace("fc_", "old_"))
    new = log_of(KERNEL)
    assert parse_plan_log(old + new).entries[0].name == "fc_myl0_0"


def test_layers_outside_the_compiler_are_read() -> None:
    """Else a network that returns a shape has no report."""
    line = (
        "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ "
        "{ Name: (Unnamed Layer* 0) [Shape]_output, Location: Device, Dimensions: [2,3], Datatype: "
        "Int64, Format: Format not available due to dynamic shapes }], ParameterType: ShapeH2D, "
        "shapeValues0: [64, 256], TacticValue: 0x0000000000000000, StreamId: 0, Metadata: "
    )
    (entry,) = parse_plan_log(log_of(line)).entries
    name = "(Unnamed Layer* 0) [Shape]_output"
    assert entry.outputs == (KernelTensor(name, (2, 3), (3, 1), "Int64"),)


def test_jumps_and_events_are_read() -> None:
    """Else a model with a condition, or with several streams, has no report."""
    start = "LayerType: {}, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
    lines = [
        "Name: a_myl0_0, "
        + start.format("cjmp")
        + "JumpTargetThen: b, JumpTargetElse: c, Metadata: ",
        "Name: b_myl0_1, " + start.format("signal") + "EventId: 3, Metadata: ",
    ]
    assert [entry.kind for entry in parse_plan_log(log_of(*lines)).entries] == ["cjmp", "signal"]


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([("INFO", "Engine generation completed")], "DETAILED"),
        ([*TOTALS, ("VERBOSE", "Layers:\nfc_myl0_0")], "I/O Tensors"),
        (log_of("fc_myl0_0"), "a line in the list of kernels"),
        (log_of(KERNEL[:200]), "a line in the list of kernels"),
        (log_of(KERNEL.replace("Half", "Posit16")), "Posit16"),
        (log_of(KERNEL.replace("Strides", "Steps")), "a tensor"),
        (log_of()[1:], "Total Activation Memory"),
    ],
    ids=["no list", "names only", "no fields", "cut", "new type", "new field", "no totals"],
)
def test_what_is_not_known_is_an_error(messages: list[tuple[str, str]], what: str) -> None:
    """Else a new TensorRT that words its log anew gives plans without kernels."""
    with pytest.raises(BuildError, match=what):
        parse_plan_log(messages)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["Total Activation Memory: 512 bytes", "Total Weights Memory: 256 bytes"], (512, 256)),
        (["Total Activation Memory: 512", "Total Weights Memory: 256"], (512, 256)),
        (["Total Weights Memory: 256 bytes"], (None, 256)),
        (["Total Activation Memory: 512 bytes", "Total Activation Memory: 1.5 MiB"], (None, None)),
        (["Total Activation Memory: 512 MiB", "Total Weights Memory: "], (None, None)),
        (["Total Activation Memory: 1 bytes", "Total Activation Memory: 2 bytes"], (2, None)),
        (["Layers:\n" + KERNEL], (None, None)),
        ([], (None, None)),
    ],
    ids=["as RTX", "old", "one", "new last", "other units", "two builds", "list alone", "nothing"],
)
def test_totals_are_taken_one_by_one(
    texts: list[str], found: tuple[int | None, int | None]
) -> None:
    """Full TensorRT words some of its log as TensorRT for RTX does: a number in another unit that
    is taken for bytes would be wrong by a million."""
    assert read_totals([("INFO", text) for text in texts]) == found


@pytest.mark.parametrize(
    ("shape", "strides", "elements"),
    [
        ((1, 128, 768), (294912, 2304, 1), 128 * 768),  # a third of a buffer of 128 x 2304
        ((4, 8, 16), (0, 16, 1), 8 * 16),  # read four times
        ((10, 3), (1, 1), 12),  # overlapping windows
        ((0, 5), (5, 1), 0),
        ((), (), 1),
        ((-1, 768), (768, 1), None),
    ],
)
def test_only_different_elements_count(
    shape: tuple[int, ...], strides: tuple[int, ...], elements: int | None
) -> None:
    """Else views and broadcasts seem to move what they never touch."""
    assert KernelTensor("x", shape, strides, "Half").elements == elements
