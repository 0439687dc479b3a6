"""The verbs of the command line, one a file.

Each has ``add_parser``, which declares its arguments, and ``run``, which returns an `Answer`. They
import PyTorch and TensorRT only when they run, so that ``--help`` and a typing error cost nothing.
"""
