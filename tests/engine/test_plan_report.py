"""Plan reports of small networks that are really built, against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx as trt

from singlecard.engine.plan_report import Kernel, PlanReport, read_plan_log
from singlecard.errors import BuildError
from singlecard.network.logger import Messages
from singlecard.network.versions import new_builder

NONE, TRANSPOSE = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
MUL, ADD = trt.ElementWiseOperation.PROD, trt.ElementWiseOperation.SUM


class Log(trt.ILogger):
    """Keeps what the builder says."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[Any, str]] = []

    def log(self, severity: Any, text: str) -> None:
        self.messages.append((severity, text))


class Net:
    """A network by hand; every layer says in its metadata which module it is of."""

    def __init__(self) -> None:
        self.log = Log()
        self.builder = new_builder(self.log, Messages())
        self.network = self.builder.create_network(0)
        self.kept: list[Any] = []

    def input(self, name: str, shape: Sequence[int], dtype: Any = trt.float16) -> Any:
        return self.network.add_input(name, dtype, tuple(shape))

    def weights(self, *shape: int, dtype: Any = np.float16) -> Any:
        values = np.random.default_rng(0).integers(-9, 9, shape)
        self.kept.append((values / 64 if dtype != np.int8 else values).astype(dtype))
        return trt.Weights(self.kept[-1])

    def constant(self, *shape: int, dtype: Any = np.float16) -> Any:
        return self.network.add_constant(shape, self.weights(*shape, dtype=dtype)).get_output(0)

    def full(self, value: float, *shape: int, dtype: Any = np.float16) -> Any:
        self.kept.append(np.full(shape, value, dtype))
        return self.network.add_constant(shape, trt.Weights(self.kept[-1])).get_output(0)

    def add(self, kind: str, *args: Any, of: str = "", **attributes: Any) -> Any:
        layer = getattr(self.network, "add_" + kind)(*args)
        for name, value in attributes.items():
            setattr(layer, name, value)
        layer.metadata = f"[{of}/aten.{kind}]"
        return layer.get_output(0)

    def matmul(self, a: Any, b: Any, of: str = "fc") -> Any:
        return self.add("matrix_multiply", a, NONE, b, NONE, of=of)

    def quantized(self, x: Any, of: str, dtype: Any = trt.int8) -> Any:
        scale = self.full(0.05)
        quantized = self.add("quantize", x, scale, dtype, of=of)
        return self.add("dequantize", quantized, scale, trt.float16, of=of)

    def build(
        self, *outputs: Any, target: str | None = "SM89", profiles: Sequence[Any] = (), of: int = 0
    ) -> PlanReport:
        for output in outputs:
            self.network.mark_output(output)
        config = self.builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if target:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
        for shapes in profiles:
            profile = self.builder.create_optimization_profile()
            profile.set_shape("x", *shapes)
            config.add_optimization_profile(profile)
        plan = self.builder.build_serialized_network(self.network, config)
        assert plan is not None, self.log.messages[-1]
        return read_plan_log(self.log.messages, engine_bytes=plan.nbytes, profile=of)


def kernel(report: PlanReport, part: str) -> Kernel:
    """Return the one kernel whose name or kind contains ``part``."""
    found = [item for item in report.kernels if part in f"{item.name} {item.kind}"]
    assert len(found) == 1, [item.name for item in report.kernels]
    return found[0]


def conv_relu(target: str | None = "SM89") -> PlanReport:
    net = Net()
    x = net.input("x", (1, 64, 56, 56))
    args = (x, 64, (3, 3), net.weights(64, 64, 3, 3), net.weights(64))
    y = net.add("convolution_nd", *args, of="stem.conv", padding_nd=(1, 1))
    return net.build(net.add("activation", y, trt.ActivationType.RELU, of="stem"), target=target)


#: A 1 x 64 x 56 x 56 map in Half.
MAP = 64 * 56 * 56 * 2


def test_convolution_is_counted_to_the_byte() -> None:
    """Else nobody sees whether a change of the model makes the card move less."""
    report = conv_relu()
    conv = kernel(report, "correlation")
    assert (conv.arithmetic, conv.flops) == ("Half", 2 * 64 * 56 * 56 * 64 * 9)
    # Besides weights and bias the kernel reads two Float factors.
    constants = 64 * 64 * 9 * 2 + 64 * 2 + 2 * 4
    assert (conv.bytes_read, conv.bytes_written) == (MAP + constants, MAP)
    # One kernel before and one after change the memory layout.
    assert report.kernels_by_kind == {"kgen": 2, "correlation": 1}
    assert report.bytes_moved == 6 * MAP + constants
    assert report.floor_bytes == 2 * MAP + constants
    assert report.arithmetic_by_type == {"Half": 1}
    assert report.weights_bytes >= 64 * 64 * 9 * 2 + 64 * 2
    assert report.scratch_bytes >= 2 * MAP
    assert report.engine_bytes > report.weights_bytes


@pytest.mark.parametrize("target", ["SM75", "SM120", None])
def test_every_target_is_read(target: str | None) -> None:
    """Else explain works for one card and fails for the next."""
    assert conv_relu(target).kernel_count == 3


def test_kernels_lead_back_to_modules() -> None:
    """Else a slow kernel is a name that the builder made up."""
    report = conv_relu()
    conv = kernel(report, "correlation")
    assert (conv.modules, conv.modules_inferred) == (("stem.conv", "stem"), False)
    assert conv.ops == ("aten.convolution_nd", "aten.activation")
    layouts = [item for item in report.kernels if item.kind == "kgen"]
    assert all(item.modules == conv.modules and item.modules_inferred for item in layouts)


def test_a_transformer_block_is_led_back_whole() -> None:
    """Else part of a model's time belongs to nobody."""
    net = Net()
    x = net.input("x", (1, 128, 256))
    heads = []
    for name in ("query", "key", "value"):
        y = net.matmul(x, net.constant(1, 256, 256), of=f"attention.{name}")
        y = net.add("shuffle", y, of="attention", reshape_dims=(1, 128, 4, 64))
        heads.append(net.add("shuffle", y, of="attention", second_transpose=(0, 2, 1, 3)))
    softmax = trt.AttentionNormalizationOp.SOFTMAX
    causal = trt.CausalMaskKind.NONE
    y = net.add("attention_v2", *heads, softmax, causal, of="attention")
    y = net.add(
        "shuffle", y, of="attention", first_transpose=(0, 2, 1, 3), reshape_dims=(1, 128, 256)
    )
    y = net.add(
        "elementwise", net.matmul(y, net.constant(1, 256, 256), of="out"), x, ADD, of="block"
    )
    args = (y, net.full(1, 1, 1, 256), net.full(0, 1, 1, 256), 1 << 2)
    y = net.add("normalization_v2", *args, of="norm")
    y = net.matmul(y, net.constant(1, 256, 1024), of="mlp.up")
    y = net.add("activation", y, trt.ActivationType.GELU_ERF, of="mlp")
    report = net.build(net.matmul(y, net.constant(1, 1024, 256), of="mlp.down"))
    assert all(item.modules for item in report.kernels)
    assert kernel(report, "mha").modules == ("attention",)
    projections = 2 * 128 * 256 * (4 * 256 + 2 * 1024)
    assert report.flops == projections + 2 * 2 * 4 * 128 * 128 * 64


def test_int8_product_reads_bytes() -> None:
    """Else INT8 that TensorRT only simulates looks like INT8."""
    net = Net()
    x = net.quantized(net.input("x", (64, 256)), of="fc.input")
    weights = net.quantized(net.constant(256, 512), of="fc.weight")
    report = net.build(net.matmul(x, weights))
    gemm = kernel(report, "gemm")
    assert (gemm.arithmetic, gemm.flops) == ("Int8", 2 * 64 * 256 * 512)
    assert gemm.bytes_read == 64 * 256 + 256 * 512 + 2 * 4
    assert gemm.bytes_written == 64 * 512 * 2


@pytest.mark.parametrize(("target", "arithmetic"), [("SM75", "Half"), ("SM89", "Int8")])
def test_simulated_int8_convolution_is_told(target: str, arithmetic: str) -> None:
    """Else a Turing owner pays INT8's accuracy for FP16's speed and never learns of it."""
    net = Net()
    x = net.quantized(net.input("x", (1, 64, 56, 56)), of="conv.input")
    layer = net.network.add_convolution_nd(x, 64, (3, 3), trt.Weights(trt.float16))
    layer.set_input(1, net.quantized(net.constant(64, 64, 3, 3), of="conv.weight"))
    report = net.build(layer.get_output(0), target=target)
    conv = kernel(report, "correlation")
    assert (conv.arithmetic, conv.flops) == (arithmetic, 2 * 64 * 54 * 54 * 64 * 9)


def test_weights_kept_small_count_small() -> None:
    """Else weight-only INT4, which is all about bytes, shows none of its gain."""
    net = Net()
    net.kept.append(np.zeros(1024 * 1024 // 2, np.uint8))
    packed = trt.Weights(trt.int4, net.kept[-1].ctypes.data, 1024 * 1024)
    weights = net.network.add_constant((1024, 1024), packed).get_output(0)
    half = net.add("dequantize", weights, net.full(0.01, 8, 1024), trt.float16, of="fc")
    report = net.build(net.matmul(net.input("x", (64, 1024)), half))
    product = kernel(report, "runtime_fusion")
    assert (product.arithmetic, product.flops) == ("Half", 2 * 64 * 1024 * 1024)
    scales, x = 8 * 1024 * 2, 64 * 1024 * 2
    assert product.bytes_read == 1024 * 1024 // 2 + scales + x


def test_fp4_takes_half_a_byte() -> None:
    """Else the traffic of a Blackwell engine is wrong, or its report fails."""
    net = Net()
    x = net.input("x", (64, 256))
    layer = net.network.add_dynamic_quantize(x, 1, 16, trt.fp4, trt.fp8)
    layer.set_input(1, net.full(1, dtype=np.float32))
    one = net.full(1, dtype=np.float32)
    scales = net.add("dequantize", layer.get_output(1), one, trt.float16)
    y = net.add("dequantize", layer.get_output(0), scales, trt.float16, axis=1)
    report = net.build(y, target="SM120")
    assert kernel(report, "Dyna").bytes_written == 64 * 256 // 2 + 64 * 16


def test_attention_is_one_product_kernel() -> None:
    """Else the largest consumer of a transformer has no arithmetic."""
    net = Net()
    q, k, v = (net.input(name, (1, 12, 128, 64)) for name in "qkv")
    softmax, causal = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    report = net.build(net.add("attention_v2", q, k, v, softmax, causal, of="attention"))
    mha = kernel(report, "mha")
    assert (mha.arithmetic, mha.flops) == ("Half", 2 * 2 * 12 * 128 * 128 * 64)
    assert (mha.bytes_read, mha.bytes_written) == (3 * 12 * 128 * 64 * 2, 12 * 128 * 64 * 2)


def test_grouped_heads_share_keys() -> None:
    """Else a decoder's attention is counted as if every head had its own cache."""
    net = Net()
    q = net.input("q", (1, 16, 1, 64))
    k, v = (net.input(name, (1, 4, 512, 64)) for name in "kv")
    softmax, causal = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    report = net.build(net.add("attention_v2", q, k, v, softmax, causal, of="attention"))
    mha = kernel(report, "mha")
    assert mha.flops == 2 * 2 * 16 * 1 * 512 * 64
    assert mha.bytes_read == 2 * 4 * 512 * 64 * 2 + 16 * 64 * 2


def test_synchronization_is_no_kernel() -> None:
    """Else engines that use several streams look as if they launched more."""
    net = Net()
    q, k, v = (net.input(name, (1, 12, 2048, 64)) for name in "qkv")
    softmax, causal = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.UPPER_LEFT
    attention = net.add("attention_v2", q, k, v, softmax, causal, of="attention")
    report = net.build(attention, target="SM86")
    assert {item.kind for item in report.synchronization} == {"signal", "wait"}
    assert report.kernels_by_kind == {"kgen": 5}


def test_softmax_reads_its_input_once_and_feeds_two_outputs() -> None:
    """Else a tensor that the log lists once a pass counts double."""
    net = Net()
    x = net.input("x", (8, 1000), trt.float32)
    y = net.add("softmax", x, of="softmax", axes=2)
    report = net.build(y, net.add("elementwise", y, x, ADD, of="sum"))
    (only,) = report.kernels
    assert (only.bytes_read, only.bytes_written) == (8 * 1000 * 4, 2 * 8 * 1000 * 4)
    assert (only.arithmetic, only.flops) == (None, None)
    assert report.bytes_moved == report.floor_bytes
    assert [(item.name, item.is_input) for item in report.network_tensors][0] == ("x", True)
    assert len(report.network_tensors) == 3


def test_two_parts_of_one_buffer_count_both() -> None:
    """Else silu(gate) * up, and q, k, v from one product, move less than they do."""
    net = Net()
    x = net.input("x", (64, 1024))
    gate = net.matmul(x, net.constant(1024, 2048), of="gate")
    up = net.matmul(x, net.constant(1024, 2048), of="up")
    sigmoid = net.add("activation", gate, trt.ActivationType.SIGMOID, of="act")
    silu = net.add("elementwise", gate, sigmoid, MUL, of="act")
    report = net.build(net.add("elementwise", silu, up, MUL, of="mlp"))
    product = kernel(report, "SiluMul")
    assert product.bytes_read == 2 * 64 * 2048 * 2
    assert product.bytes_written == 64 * 2048 * 2


def test_embedding_moves_only_its_rows() -> None:
    """Else the table, most of a small model's bytes, hides everything else."""
    net = Net()
    ids = net.input("ids", (1, 128), trt.int64)
    report = net.build(net.add("gather", net.constant(30000, 768), ids, 0, of="embedding"))
    rows = 128 * 768 * 2
    assert report.bytes_moved == report.floor_bytes == 128 * 8 + 2 * rows
    assert report.weights_bytes == 30000 * 768 * 2


def test_embedding_bag_reads_a_row_for_each_index() -> None:
    """Else a gather that is summed at once seems to read one row for many."""
    net = Net()
    ids = net.input("ids", (16, 20), trt.int64)
    rows = net.add("gather", net.constant(3000, 768), ids, 0, of="bag")
    report = net.build(net.add("reduce", rows, trt.ReduceOperation.SUM, 2, False, of="bag"))
    assert kernel(report, "Gath").bytes_read == 16 * 20 * 8 + 16 * 20 * 768 * 2


def test_cache_update_moves_only_the_update() -> None:
    """Else each token of a decoder seems to copy the whole cache."""
    net = Net()
    cache = net.input("cache", (1, 8, 1024, 64))
    update, place = net.input("update", (1, 8, 1, 64)), net.input("place", (1,), trt.int32)
    mode = trt.KVCacheMode.LINEAR
    report = net.build(net.add("kv_cache_update", cache, update, place, mode, of="cache"))
    assert report.bytes_moved == 2 * 8 * 64 * 2 + 4


def test_broadcast_is_read_once() -> None:
    """Else a bias seems as large as what it is added to."""
    net = Net()
    bias, x = net.input("bias", (1, 1, 768)), net.input("x", (1, 128, 768))
    report = net.build(net.add("elementwise", x, bias, ADD, of="add"))
    assert report.bytes_moved == 768 * 2 + 2 * 128 * 768 * 2


def test_grouped_and_transposed_convolutions() -> None:
    """Else a depthwise layer seems to compute as much as a full one."""
    net = Net()
    x = net.input("x", (1, 64, 56, 56))
    none = trt.Weights(trt.float16)
    args = (x, 64, (3, 3), net.weights(64, 1, 3, 3), none)
    y = net.add("convolution_nd", *args, of="depthwise", num_groups=64, padding_nd=(1, 1))
    args = (y, 32, (2, 2), net.weights(64, 32, 2, 2), none)
    report = net.build(net.add("deconvolution_nd", *args, of="up", stride_nd=(2, 2)))
    assert kernel(report, "correlation").flops == 2 * 64 * 56 * 56 * 9
    assert kernel(report, "deconv").flops == 2 * 64 * 56 * 56 * 32 * 4


def dynamic(profiles: Sequence[Any], of: int = 0) -> PlanReport:
    net = Net()
    y = net.matmul(net.input("x", (-1, -1, 256)), net.constant(1, 256, 512))
    return net.build(net.add("softmax", y, of="softmax", axes=4), profiles=profiles, of=of)


LOW, USUAL, HIGH = (1, 1, 256), (2, 64, 256), (4, 128, 256)


def test_dynamic_sizes_are_unknown_not_zero() -> None:
    """Else a plan with dynamic shapes looks free."""
    report = dynamic([(LOW, USUAL, HIGH)])
    assert report.is_dynamic
    assert (report.bytes_moved, report.floor_bytes, report.flops) == (None, None, None)
    assert [item.kind for item in report.synchronization] == ["shape_call"]
    assert kernel(report, "gemm").arithmetic == "Half"
    assert report.network_tensors[0].ranges == ((LOW, USUAL, HIGH),)


def test_a_pinned_profile_tells_the_sizes() -> None:
    """Else there is no way to learn what a dynamic model moves at the shape one cares for."""
    report = dynamic([(USUAL, USUAL, USUAL)])
    x, weights, y = 128 * 256 * 2, 256 * 512 * 2 + 2 * 4, 128 * 512 * 2
    assert not report.is_dynamic
    assert report.bytes_moved == x + weights + y + 2 * y
    assert report.flops == 2 * 128 * 256 * 512


def test_a_run_uses_one_of_several_profiles() -> None:
    """Else an engine with two profiles seems to launch every kernel twice."""
    spans = [(LOW, LOW, LOW), (USUAL, USUAL, USUAL)]
    first, second = dynamic(spans, of=0), dynamic(spans, of=1)
    assert first.profiles == second.profiles == 2
    assert first.kernel_count == second.kernel_count == 2
    assert [tensor.name for tensor in kernel(second, "gemm").inputs] == ["x"]


@pytest.mark.parametrize(
    "make", [conv_relu, lambda: dynamic([(LOW, USUAL, HIGH)])], ids=["static", "dynamic"]
)
def test_report_survives_json(make: Callable[[], PlanReport]) -> None:
    """Else a cached engine's report differs from the one that was built."""
    report = make()
    assert PlanReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_report_of_another_version_is_refused() -> None:
    """Else an old cache entry ends in a KeyError far from its cause."""
    values = conv_relu().to_dict()
    del values["kernels"][0]["flops"]
    with pytest.raises(BuildError, match=r"flops.*cache clear"):
        PlanReport.from_dict(values)
