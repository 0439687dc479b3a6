"""Which TensorRT is taken, and what is done where the installed one lacks something."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from singlecard.errors import BuildError, FlavourError, LoweringError, RuntimeFailure
from singlecard.network import flavour, logger, versions
from singlecard.network.core import Core
from singlecard.network.inspect import view_network
from singlecard.network.logger import Messages, new_logger
from singlecard.network.net import Net
from tests.lowering.check import check, weight

#: Full TensorRT 10.13 as it behaves without a driver. Its bindings turn the null pointer that the
#: library returns into this TypeError: seen with those of 10.13, 10.16, 11.0 and 11.4.
FULL = """
__version__ = "10.13.0.35"

class ILogger:
    def __init__(self): ...

class _Named:
    name = "ERROR"

class Builder:
    def __init__(self, logger):
        logger.log(_Named, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

Runtime = Builder

class BuilderFlag:
    FP16 = 0

class NetworkDefinitionCreationFlag:
    EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1

class HardwareCompatibilityLevel:
    SAME_COMPUTE_CAPABILITY = 2
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test find its own TensorRT."""
    monkeypatch.delenv(flavour.CHOICE, raising=False)
    for cached in (flavour.tensorrt, logger._logger_class):
        cached.cache_clear()
    yield
    for cached in (flavour.tensorrt, logger._logger_class):
        cached.cache_clear()


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install full TensorRT 10.13 beside what is there, without a GPU."""
    (tmp_path / "tensorrt.py").write_text(FULL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(flavour.CHOICE, "tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    return tmp_path


@pytest.fixture
def layers_of_10_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from the installed TensorRT the layers that version 10.13 lacks."""
    has = versions.has
    absent = ("INetworkDefinition", "ITopKLayer", "CausalMaskKind", "KVCacheMode")
    monkeypatch.setattr(versions, "has", lambda name: not name.startswith(absent) and has(name))


# Which one -----------------------------------------------------------------------------------


def test_the_one_that_needs_no_gpu_comes_first(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has both would lose building without a GPU by installing the second."""
    monkeypatch.delenv(flavour.CHOICE)
    assert flavour.flavour_name() == "tensorrt_rtx"


def test_the_environment_chooses(full: Path) -> None:
    """tensorrt-rtx is always installed with singlecard: full TensorRT must be reachable too."""
    assert (flavour.flavour_name(), flavour.flavour_version()) == ("tensorrt", "10.13.0.35")


def test_a_choice_that_is_no_flavour_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt choice that is passed over would build with the other flavour unseen."""
    monkeypatch.setenv(flavour.CHOICE, "full")
    with pytest.raises(FlavourError, match="=full names no flavour.*tensorrt_rtx or tensorrt"):
        flavour.tensorrt()


def test_a_choice_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out is to install it, and the message must say what."""
    monkeypatch.setenv(flavour.CHOICE, "tensorrt")
    monkeypatch.setattr(flavour, "_is_installed", lambda name: False)
    with pytest.raises(FlavourError, match="pip install tensorrt'"):
        flavour.tensorrt()


def test_type_stubs_are_no_flavour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python imports a folder of stubs as an empty module, and all of TensorRT seems missing."""
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.pyi").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(FlavourError, match="no TensorRT is installed"):
        flavour.tensorrt()


# Building ------------------------------------------------------------------------------------


def test_full_tensorrt_says_that_it_needs_a_gpu(full: Path) -> None:
    """``factory function returned nullptr`` tells nobody that the card is missing."""
    with pytest.raises(BuildError) as caught:
        Core()
    text = str(caught.value)
    assert "tensorrt 10.13.0.35" in text and "builds engines on the GPU they are for" in text
    assert "CUDA initialization failure with error: 35" in text
    assert "pip install tensorrt-rtx" in text


def test_loading_says_that_it_needs_a_gpu(full: Path) -> None:
    """The runtime fails in the same words as the builder, where a driver is missing."""
    messages = Messages()
    with pytest.raises(RuntimeFailure, match="error: 35.*nvidia-smi"):
        versions.new_runtime(new_logger(messages), messages)


def test_networks_are_strongly_typed_where_that_is_a_choice(full: Path) -> None:
    """In a weakly typed network TensorRT would round to FP16 where nobody asked for it."""
    assert versions.network_flags() == 1 << 1


def test_the_installed_network_is_strongly_typed() -> None:
    """In a weakly typed network TensorRT would round to FP16 where nobody asked for it."""
    definition = Net().definition
    assert definition.get_flag(flavour.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    view_network(definition)


def test_a_weakly_typed_network_is_refused(full: Path) -> None:
    """Two of them that compute in different types would have one digest, and share an engine."""
    network: Any = SimpleNamespace(get_flag=lambda flag: False)
    with pytest.raises(LoweringError, match="weakly typed.*STRONGLY_TYPED"):
        view_network(network)


def test_full_tensorrt_builds_for_the_card_at_hand(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is cached for sm89 must run on every sm89, not on this one card alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    config: Any = SimpleNamespace()
    versions.set_targets(config, ("sm89",))
    assert config.hardware_compatibility_level == 2
    for targets, asked in ((("sm86",), "asked for sm86"), ((), "asked for a portable engine")):
        with pytest.raises(BuildError, match=rf"which is sm89, and was {asked}.*\('sm89',\)"):
            versions.set_targets(config, targets)


def test_full_tensorrt_cannot_tell_the_card_without_one(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyTorch sees no card, the message must not be about targets."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config: Any = SimpleNamespace()
    with pytest.raises(BuildError, match="PyTorch finds none.*pip install tensorrt-rtx"):
        versions.set_targets(config, ("sm89",))


def test_what_the_log_of_full_tensorrt_says_is_not_guessed(full: Path) -> None:
    """Its list of kernels was never compared with an engine: read as RTX's, it is an error, after
    a build of minutes."""
    assert not versions.lists_kernels() and versions.measures_kernels()


def test_the_log_of_tensorrt_for_rtx_is_read() -> None:
    """Without it ``explain`` shows nothing, and INT8 is taken unseen."""
    assert versions.lists_kernels() and not versions.measures_kernels()


def test_timings_are_of_the_device_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with two cards those of the first would choose the second's kernels."""
    assert versions.device_at_hand() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert versions.device_at_hand() == torch.device("cuda", 1)


def test_all_targets_are_set() -> None:
    """An engine for two cards that lacks one of them fails on the machine that has it."""
    set_to = []
    config: Any = SimpleNamespace(
        set_compute_capability=lambda card, at: set_to.append((at, card.name))
    )
    versions.set_targets(config, ("sm86", "sm120"))
    assert config.num_compute_capabilities == 2 and set_to == [(0, "SM86"), (1, "SM120")]


# Layers --------------------------------------------------------------------------------------


def test_indices_are_64_bits_wide_all_the_same(layers_of_10_13: None) -> None:
    """PyTorch's indices are INT64; TensorRT 10.13 gives INT32, which no caller expects."""
    check(lambda x: x.topk(3, -1), torch.randn(4, 9), build=True)


@pytest.mark.parametrize("groups", (1, 2, 6))
def test_groups_are_normalized_all_the_same(layers_of_10_13: None, groups: int) -> None:
    """The older layer takes a scale for each group, and would apply it to the wrong channels."""
    x = torch.randn(2, 6, 4, 5) * 2 + torch.arange(6.0).reshape(6, 1, 1)
    check(lambda x, w, b: F.group_norm(x, groups, w, b), x, weight(6), weight(6), build=groups < 3)


def test_layers_are_normalized_all_the_same(layers_of_10_13: None) -> None:
    """Every transformer block has two."""
    x = torch.randn(2, 3, 8)
    check(lambda x, w, b: F.layer_norm(x, (8,), w, b), x, weight(8), weight(8), build=True)


def test_the_older_attention_layer_is_used_where_it_suffices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT 10.14 to 10.16 fuse attention as well, under another name."""
    has = versions.has
    absent = "INetworkDefinition.add_attention_v2"
    monkeypatch.setattr(versions, "has", lambda name: name != absent and has(name))
    assert versions.has_attention()
    net = Net()
    q, k, v = (net.input(name, torch.float16, (1, 2, 4, 16)) for name in "qkv")
    net.mark_output(net.attention(q, k, v, None, "NONE", False), "out")
    layers = view_network(net.definition).layers
    assert "ATTENTION_INPUT" in [layer.kind for layer in layers]
    assert versions.attention_call("UPPER_LEFT")[1][-1] is True


def test_what_is_missing_is_named(layers_of_10_13: None) -> None:
    """``NoneType`` has no attribute tells nobody which TensorRT to install."""
    assert not versions.has_attention() and not versions.has_cache_update()
    net = Net()
    x = net.input("x", torch.float16, (1, 2, 4, 16))
    with pytest.raises(LoweringError, match="has no INetworkDefinition.add_attention: this part"):
        net.attention(x, x, x, None, "NONE", False)
    with pytest.raises(LoweringError, match="has no INetworkDefinition.add_kv_cache_update"):
        net.update_cache(x, x, net.input("at", torch.int32, (1,)))
