"""The ONNX route beside which singlecard is measured: ``torch.onnx.export`` and ``OnnxParser``.

    python benchmarks/peers.py                        # six models, FP32 and FP16
    python benchmarks/peers.py bert_base --precision fp16 --runs 3

Engines are built by the same builder, with the same config, for the same card as singlecard's, and
their plans are read by the same parser. Every measurement has a process of its own. What importing
takes is left out: a tiny model goes the same way first.

Torch-TensorRT, the other peer, cannot be measured on a machine without a GPU: importing it there
fails. Its figures are cited, from runs of its lowering that were made for the project's design.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from cases import MODELS, PRECISIONS, TARGET, Case, in_half, load_case
from fresh_process import Clock, median_of, run_fresh

#: Kernels of a Torch-TensorRT engine, FP16, SM89, batch 1: cited, not measured here.
TORCH_TENSORRT_KERNELS = {"resnet50": 64, "bert_base": 133, "vit_b16": 137}

#: Seconds that Torch-TensorRT's lowering takes for models of this size: cited, not measured here.
TORCH_TENSORRT_LOWERING = (2.5, 8.0)

TIMES = ("export_seconds", "save_seconds", "parse_seconds", "build_seconds")


def export_and_parse(case: Case, net: Any) -> dict[str, float]:
    """Take a model through ONNX into a network; return the seconds of each step."""
    from singlecard.network.flavour import tensorrt

    module, args, kwargs = case
    clock = Clock()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, args, kwargs=kwargs, dynamo=True, verbose=False)
    exporting, export_cpu = clock.read()
    # Beside the file, because a protobuf message ends at 2 GB.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        clock = Clock()
        program.save(file, external_data=True)
        saving, _ = clock.read()
        clock = Clock()
        net.parser = tensorrt().OnnxParser(net.definition, net.logger)  # owns the weights
        if not net.parser.parse_from_file(str(file)):
            errors = [str(net.parser.get_error(i)) for i in range(net.parser.num_errors)]
            raise RuntimeError(f"OnnxParser refused the model: {'; '.join(errors)}")
        parsing, parse_cpu = clock.read()
    return {
        "export_seconds": exporting,
        "save_seconds": saving,
        "parse_seconds": parsing,
        "to_network_cpu_seconds": export_cpu + parse_cpu,
    }


def measure_onnx_route(model: str, precision: str, build: bool = True) -> dict[str, Any]:
    """Take one model through ONNX to an engine, in this process; return times and plan figures."""
    from singlecard.engine.plan_report import read_plan_log
    from singlecard.network.building import BuildSettings, build_plan
    from singlecard.network.net import Net

    tiny = torch.nn.Linear(8, 8).eval(), (torch.zeros(1, 8),), {}
    export_and_parse(tiny, Net())

    case = load_case(model)
    net = Net()
    result: dict[str, Any] = export_and_parse(in_half(case) if precision == "fp16" else case, net)
    result |= {"model": model, "precision": precision}
    if not build:
        return result
    plan = io.BytesIO()
    clock = Clock()
    messages = build_plan(net, {}, BuildSettings((TARGET,)), plan)
    result["build_seconds"], _ = clock.read()
    report = read_plan_log(messages, engine_bytes=plan.tell())
    return result | plan_figures([report])


def plan_figures(plans: list[Any]) -> dict[str, int]:
    """Return what is compared of a model's plans: sums, and the most that one takes of scratch."""
    return {
        "engines": len(plans),
        "kernels": sum(plan.kernel_count for plan in plans),
        "bytes_moved": sum(plan.bytes_moved for plan in plans),
        "floor_bytes": sum(plan.floor_bytes for plan in plans),
        "scratch_bytes": max((plan.scratch_bytes for plan in plans), default=0),
        "weights_bytes": sum(plan.weights_bytes for plan in plans),
        "engine_bytes": sum(plan.engine_bytes for plan in plans),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the ONNX route.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--precision", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--runs", type=int, default=1, help="medians of times over this many")
    parser.add_argument("--one", action="store_true", help="one model, in this process, as JSON")
    parser.add_argument("--no-build", action="store_true", help="only export and parse")
    given = parser.parse_args()
    if given.one:
        one = measure_onnx_route(given.models[0], given.precision[0], not given.no_build)
        print(json.dumps(one))
        return
    print(
        f"{'model':10} {'type':5} {'kernels':>7} {'moved':>9} {'scratch':>8} {'engine':>9} "
        f"{'export':>7} {'save':>6} {'parse':>6} {'build':>6}"
    )
    for precision in given.precision:
        for model in given.models or MODELS:
            arguments = ("--one", model, "--precision", precision)
            runs = [run_fresh("peers.py", *arguments) for _ in range(given.runs)]
            row = runs[0] | {key: median_of(runs, key) for key in TIMES}
            print(
                f"{model:10} {precision:5} {row['kernels']:7} {row['bytes_moved'] / 1e6:6.1f} MB "
                f"{row['scratch_bytes'] / 1e6:5.1f} MB {row['engine_bytes'] / 1e6:6.1f} MB "
                f"{row['export_seconds']:5.2f} s {row['save_seconds']:4.2f} s "
                f"{row['parse_seconds']:4.2f} s {row['build_seconds']:4.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
