"""Which of a kernel's tensors are multiplied, where the list leaves it open."""

from __future__ import annotations

from singlecard.engine.plan_arithmetic import arithmetic_of
from singlecard.engine.plan_log import KernelTensor, LogEntry


def tensor(*shape: int, dtype: str = "Half") -> KernelTensor:
    return KernelTensor("t", shape, (1,) * len(shape), dtype)


def entry(
    name: str,
    kind: str,
    inputs: list[KernelTensor],
    constants: list[KernelTensor],
    output: KernelTensor,
) -> LogEntry:
    return LogEntry(name, kind, tuple(inputs), tuple(constants), (output,), "", None)


def test_residuals_are_no_operands() -> None:
    """Else a product that adds two tensors of the output's shape counts these as multiplied."""
    square, x, weights = tensor(64, 64), tensor(64, 512), [tensor(512, 64)]
    for inputs in ([square, square, x], [x, square, square]):
        fused = entry("__myl_FcAddAdd_myl0_3", "runtime_fusion", inputs, weights, square)
        assert arithmetic_of(fused) == ("Half", 2 * 64 * 64 * 512)


def test_weights_may_stand_on_the_left() -> None:
    """Else a 1x1 convolution that became a product has no arithmetic."""
    inputs, weights = [tensor(1, 512, 784)], [tensor(1, 256, 512)]
    fused = entry("__myl_FcRelu_myl0_1", "runtime_fusion", inputs, weights, tensor(1, 256, 784))
    assert arithmetic_of(fused) == ("Half", 2 * 256 * 784 * 512)


def test_a_residual_is_no_filter() -> None:
    """Else a convolution whose batch equals its channels takes the residual for its weights."""
    x, residual = tensor(64, 32, 8, 8), tensor(64, 64, 8, 8)
    inputs = [x, residual, tensor(64, 32, 3, 3)]
    conv = entry("conv_myl0_1", "correlation", inputs, [tensor(1)], tensor(64, 64, 8, 8))
    assert arithmetic_of(conv) == ("Half", 2 * 64 * 64 * 8 * 8 * 32 * 9)


def test_what_cannot_be_told_is_unknown() -> None:
    """Else a chain of products in one kernel counts as its last product."""
    inputs, weights = [tensor(64, 256)], [tensor(256, 512), tensor(512, 256)]
    chain = entry("__myl_FcReluFc_myl0_1", "runtime_fusion", inputs, weights, tensor(64, 256))
    assert arithmetic_of(chain) == ("Half", None)


def test_the_wider_type_computes() -> None:
    """Else weights kept in Int8 make a Half product look like Int8 arithmetic."""
    inputs, weights = [tensor(64, 256)], [tensor(256, 512, dtype="Int8")]
    product = entry("fc_myl0_1", "gemm", inputs, weights, tensor(64, 512))
    assert arithmetic_of(product) == ("Half", 2 * 64 * 256 * 512)


def test_generated_code_has_no_products() -> None:
    """Else elementwise kernels seem to be bound by arithmetic."""
    kernel = entry("__myl_MulAdd_myl0_1", "kgen", [tensor(8, 8), tensor(8, 8)], [], tensor(8, 8))
    assert arithmetic_of(kernel) == (None, None)
