"""The package as users get it: what an import costs, what it offers, what is registered."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

import singlecard

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_loads_neither_tensorrt_nor_cuda() -> None:
    """torch.compile looks backends up by name in every process, also in those that use another."""
    heavy = ("torch", "tensorrt_rtx", "tensorrt", "torch_tensorrt", "rich", "numpy")
    heavy += ("singlecard_calib",)
    loaded = f"[name for name in {heavy!r} if name in sys.modules]"
    assert run_python(f"import sys, singlecard; print({loaded})") == "[]"


def test_the_backend_itself_leaves_cuda_alone() -> None:
    """A process that forks its workers must not have touched the card before."""
    code = (
        "import sys, torch, singlecard.backend; "
        "print(torch.cuda.is_initialized(), 'tensorrt_rtx' in sys.modules)"
    )
    assert run_python(code) == "False False"


def test_every_public_name_resolves() -> None:
    """A name in the documentation that is not there costs more trust than a missing feature."""
    for name in singlecard.__all__:
        assert getattr(singlecard, name) is not None
    assert sorted(singlecard.__all__) == singlecard.__all__


def test_parts_of_calibration_resolve() -> None:
    """`SinglecardQuantizer` needs torchao, an extra: asking for another name must not."""
    import singlecard_calib

    for name in singlecard_calib.__all__:
        if name != "SinglecardQuantizer" or find_spec("torchao") is not None:
            assert getattr(singlecard_calib, name) is not None
    assert not hasattr(singlecard_calib, "no_such_name")


def test_an_unknown_name_is_an_attribute_error() -> None:
    """``hasattr`` and tab completion rely on it."""
    assert not hasattr(singlecard, "no_such_name")


@pytest.mark.parametrize("package", ["singlecard", "singlecard_calib"])
def test_types_ship(package: str) -> None:
    """Without the marker mypy ignores every hint."""
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not on the path")
    assert Path(found.origin).with_name("py.typed").exists()


def test_the_distribution_registers_backend_and_script() -> None:
    """``backend="singlecard"`` works with no import only through its entry point."""
    try:
        installed = distribution("singlecard")
    except PackageNotFoundError:
        pytest.skip("singlecard is not installed, only on the path")
    points = {(point.group, point.name): point.value for point in installed.entry_points}
    assert points["torch_dynamo_backends", "singlecard"] == "singlecard.backend:compile_graph"
    assert points["console_scripts", "singlecard"] == "singlecard.cli:main"
    assert installed.version == singlecard.__version__


def test_torch_lists_the_backend() -> None:
    """The one line of the README."""
    try:
        distribution("singlecard")
    except PackageNotFoundError:
        pytest.skip("singlecard is not installed, only on the path")
    listed = run_python("import torch; print('singlecard' in torch._dynamo.list_backends())")
    assert listed == "True"


def test_the_changelog_knows_the_version() -> None:
    """A release nobody described."""
    assert f"## {singlecard.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_many_threads_may_compile_first() -> None:
    """PyTorch registers a backend without a lock: nineteen of these raised "duplicate name"."""
    code = """
import threading
import torch

gate, right = threading.Barrier(20), []

def compile_and_call():
    model, x = torch.nn.Linear(4, 4).eval(), torch.ones(2, 4)
    gate.wait()
    compiled = torch.compile(model, backend="singlecard", options={"build": "never"})
    with torch.no_grad():
        right.append(torch.equal(compiled(x), model(x)))

threads = [threading.Thread(target=compile_and_call) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert torch._dynamo.list_backends().count("singlecard") == 1
print(right.count(True))
"""
    assert run_python(code) == "20"
