"""One engine that TensorRT really builds, in a second: for `cache_faults`."""

from __future__ import annotations

from pathlib import Path


def import_all() -> None:
    """Import what `build_small` needs, without starting a thread."""
    import torch  # noqa: F401

    from singlecard.engine import build  # noqa: F401
    from singlecard.network.flavour import tensorrt

    tensorrt()


def build_small(folder: Path) -> int:
    """Put the engine of a small network into a cache; return 0."""
    import torch

    from singlecard.engine.build import get_engine
    from singlecard.engine.cache import Cache
    from singlecard.lowering.lower import Lowered
    from singlecard.network.building import BuildSettings
    from singlecard.network.net import Net

    net = Net()
    x = net.input("input_0", torch.float32, (64, 64))
    for layer in range(8):
        x = net.matmul(x, net.constant(torch.full((64, 64), 1 + layer / 8)))
    net.mark_output(x, "output_0")
    get_engine(Lowered(net, (), (), {}, {}, {}), BuildSettings(("sm89",)), Cache(folder))
    return 0
