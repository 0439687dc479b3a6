"""Tests of ONNX whose expected answers are not those of the network that TensorRT's parser makes.

The evaluator does what the network says; each sentence is why that is not what ONNX expects. All
were seen with TensorRT-RTX 1.7.1.116 and onnx 1.23.
"""

from __future__ import annotations

EXCEPTIONS: dict[str, str] = {}
