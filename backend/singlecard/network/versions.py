"""What TensorRT 10.x, 11.x and TensorRT for RTX do differently, all in one place.

The rest of singlecard uses only names that TensorRT 10.13 has, with the meaning they have there;
a test compares every name with the type stubs published for that version. What is newer, or of one
flavour alone, is reached from here, and asked for by name, never by a version number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from singlecard.errors import BuildError, LoweringError, RuntimeFailure
from singlecard.network.endings import making
from singlecard.network.flavour import flavour_name, flavour_version, trt
from singlecard.network.logger import Messages

if TYPE_CHECKING:
    import torch

_STAYS = "this part of the model stays in PyTorch; tensorrt-rtx and newer versions have it"
_CARDS = "build on the machine with the card, or install tensorrt-rtx"

#: What TensorRT 10.13 lacks and singlecard uses, with what to do where it is missing.
NEWER: Mapping[str, str] = MappingProxyType(
    {
        "INetworkDefinition.add_attention": _STAYS,
        "INetworkDefinition.add_attention_v2": _STAYS,
        "AttentionNormalizationOp.SOFTMAX": _STAYS,
        "CausalMaskKind": _STAYS,
        "INetworkDefinition.add_kv_cache_update": _STAYS,
        "KVCacheMode.LINEAR": _STAYS,
        "INetworkDefinition.add_normalization_v2": _STAYS,
        "ITopKLayer.indices_type": _STAYS,
        "ComputeCapability": _CARDS,
        "IBuilderConfig.num_compute_capabilities": _CARDS,
        "IBuilderConfig.set_compute_capability": _CARDS,
    }
)

#: Other files of this package that use names which TensorRT 10.13 lacks, and which: members of a
#: layer that is there already, and features of the runtime that stand behind `hasattr`.
ELSEWHERE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "network/layers.py": frozenset({"decomposable", "mask"}),
        "network/inspect.py": frozenset({"ATTENTION_INPUT", "normalization_quantize_to_type"}),
        "network/runtime_settings.py": frozenset(
            {
                "CudaGraphStrategy",
                "DISABLED",
                "WHOLE_GRAPH_CAPTURE",
                "cuda_graph_strategy",
                "DynamicShapesKernelSpecializationStrategy",
                "dynamic_shapes_kernel_specialization_strategy",
                "create_runtime_cache",
                "set_runtime_cache",
            }
        ),
        "network/validity.py": frozenset(
            {
                "EngineInvalidityDiagnostics",
                "EngineValidity",
                "engine_header_size",
                "get_engine_validity",
                "CUDA_ERROR",
                "INSUFFICIENT_GPU_MEMORY",
                "INVALID",
                "MALFORMED_ENGINE",
                "OLD_CUDA_DRIVER",
                "OLD_CUDA_RUNTIME",
                "SUBOPTIMAL",
                "UNSUPPORTED_CC",
                "VERSION_MISMATCH",
            }
        ),
        "network/executing.py": frozenset({"defer_weights_loading"}),
        "network/weights.py": frozenset(
            {
                "get_size",
                "load_weights",
                "restore_from_buffer",
                "save_to_buffer",
                "unload",
                "unload_weights",
                "weights_loaded",
            }
        ),
        "runtime/runtime_cache.py": frozenset({"deserialize"}),
        "runtime/seat.py": frozenset({"load_weights", "unload_weights"}),
        "runtime/weight_turns.py": frozenset({"load_weights", "unload_weights"}),
    }
)


def has(feature: str) -> bool:
    """Tell whether the installed TensorRT has something of `NEWER`."""
    assert feature in NEWER, feature
    value: Any = trt
    for name in feature.split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def newer(feature: str) -> Any:
    """Return something of `NEWER`.

    Raises:
        LoweringError: the installed TensorRT has no such thing.
    """
    if not has(feature):
        raise LoweringError(f"{_installed()} has no {feature}: {NEWER[feature]}")
    value: Any = trt
    for name in feature.split("."):
        value = getattr(value, name)
    return value


def _installed() -> str:
    return f"the installed TensorRT ({flavour_name()} {flavour_version()})"


# The network ---------------------------------------------------------------------------------


def network_flags() -> int:
    """Return the creation flags of a strongly typed network.

    TensorRT 10 has weakly typed ones too, and makes those unless it is asked. Later versions make
    no others, and ignore the flag.
    """
    if not has_weak_typing():
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def has_weak_typing() -> bool:
    """Tell whether TensorRT chooses types itself unless it is told not to, as version 10 does."""
    return hasattr(trt.BuilderFlag, "FP16")


def check_typing(network: trt.INetworkDefinition) -> None:
    """Refuse a weakly typed network, whose tensors do not have the types that they declare.

    Raises:
        LoweringError: it is one.
    """
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    if has_weak_typing() and not network.get_flag(flag):
        raise LoweringError(
            "the network is weakly typed, so TensorRT chooses types that nobody can read back: "
            "make it with NetworkDefinitionCreationFlag.STRONGLY_TYPED"
        )


def attention_call(causal: str) -> tuple[str, tuple[Any, ...]]:
    """Return the kind of the attention layer, and its arguments behind query, key and value.

    Args:
        causal: a ``CausalMaskKind``'s name. TensorRT 10 knows NONE and UPPER_LEFT.

    Raises:
        LoweringError: the installed TensorRT has no such layer.
    """
    if not has("INetworkDefinition.add_attention_v2") and causal in ("NONE", "UPPER_LEFT"):
        newer("INetworkDefinition.add_attention")
        return "attention", (newer("AttentionNormalizationOp.SOFTMAX"), causal == "UPPER_LEFT")
    kind = getattr(newer("CausalMaskKind"), causal)
    return "attention_v2", (newer("AttentionNormalizationOp.SOFTMAX"), kind)


def has_attention() -> bool:
    """Tell whether attention without a causal mask is one layer; else it must be written out."""
    return has("INetworkDefinition.add_attention_v2") or has("INetworkDefinition.add_attention")


def has_cache_update() -> bool:
    """Tell whether a key-value cache can be written in place."""
    return has("INetworkDefinition.add_kv_cache_update")


def cache_update_call() -> tuple[str, tuple[Any, ...]]:
    """Return the kind of the layer that writes to a cache, and its last arguments.

    Raises:
        LoweringError: the installed TensorRT has no such layer.
    """
    newer("INetworkDefinition.add_kv_cache_update")
    return "kv_cache_update", (newer("KVCacheMode.LINEAR"),)


def normalization_kind() -> str:
    """Return the kind of the normalization layer.

    ``normalization`` takes one scale and one bias for each group, ``normalization_v2`` for each
    channel. They agree on everything else that is used here.
    """
    found = has("INetworkDefinition.add_normalization_v2")
    return "normalization_v2" if found else "normalization"


def index_type() -> tuple[trt.DataType, ...]:
    """Return the arguments that make a top-k layer's indices INT64; without, they are INT32."""
    return (trt.DataType.INT64,) if has("ITopKLayer.indices_type") else ()


# Building and loading ------------------------------------------------------------------------


def new_builder(logger: trt.ILogger, messages: Messages) -> trt.Builder:
    """Return a builder.

    Raises:
        BuildError: this flavour needs a GPU to build, and finds none.
    """
    try:
        with making():
            return trt.Builder(logger)
    except TypeError as error:  # pybind11 turns the null pointer that TensorRT returned into this
        if builds_for_other_cards():
            raise BuildError(
                f"{_installed()} could not make a builder: {messages.last_problem()}"
            ) from error
        raise BuildError(
            f"{_installed()} builds engines on the GPU they are for, and could not use one on this "
            f"machine ({messages.last_problem()}): run this on the machine with the card, or "
            "install TensorRT for RTX, which builds without a GPU: pip install tensorrt-rtx"
        ) from error


def new_runtime(logger: trt.ILogger, messages: Messages) -> trt.Runtime:
    """Return what loads engines.

    Raises:
        RuntimeFailure: TensorRT finds no GPU that it can use.
    """
    try:
        with making():
            return trt.Runtime(logger)
    except TypeError as error:
        raise RuntimeFailure(
            f"{_installed()} could not use a GPU on this machine ({messages.last_problem()}): "
            "look at what nvidia-smi says of the card and its driver"
        ) from error


def weights_manager(engine: trt.ICudaEngine) -> Any:
    """Return what hands out an engine's weights and takes them back; None where there is none."""
    if not hasattr(engine, "create_weights_manager"):
        return None
    return engine.create_weights_manager()


def builds_for_other_cards() -> bool:
    """Tell whether engines can be built for cards that are not in this machine."""
    return has("ComputeCapability")


def measures_kernels() -> bool:
    """Tell whether the builder times kernels on the card, so that timings are worth keeping.

    TensorRT for RTX has a timing cache too, and does not use it: it builds without a card.
    """
    return not builds_for_other_cards()


def lists_kernels() -> bool:
    """Tell whether the builder's list of kernels has the form that `engine.plan_log` reads.

    It was read from TensorRT for RTX alone. In public logs of TensorRT 10 the list has tensors
    without strides, other words for types, and kinds of kernels that RTX plans do not have, some of
    which start nothing on the card.
    """
    return flavour_name() == "tensorrt_rtx"


def set_targets(config: trt.IBuilderConfig, targets: Sequence[str]) -> None:
    """Choose the cards that an engine is for, such as ``("sm89",)``; none means portable.

    Full TensorRT builds for the card at hand, and is told to keep the engine good for every card
    of its compute capability: that is what a target stands for in the cache.

    Raises:
        BuildError: the installed TensorRT cannot build for them.
    """
    if builds_for_other_cards():
        if targets:
            cards: Any = config
            cards.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                capability = getattr(newer("ComputeCapability"), target.upper())
                cards.set_compute_capability(capability, index)
        return
    here = _card_at_hand()
    if tuple(targets) != (here,):
        asked = f"asked for {', '.join(targets)}" if targets else "asked for a portable engine"
        raise BuildError(
            f"{_installed()} builds for the card at hand only, which is {here}, and was {asked}: "
            f"give targets=({here!r},), or install tensorrt-rtx to build for other cards"
        )
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def device_at_hand() -> torch.device | None:
    """Return the CUDA device that a builder measures on: the current one; None without a GPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None


def _card_at_hand() -> str:
    import torch

    if not torch.cuda.is_available():
        raise BuildError(
            f"{_installed()} builds engines on the GPU they are for, and PyTorch finds none on "
            "this machine: run this on the machine with the card, or install TensorRT for RTX, "
            "which builds without a GPU: pip install tensorrt-rtx"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"
