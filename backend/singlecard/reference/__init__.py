"""Run a network on any torch device, layer by layer, with the types that the network declares."""

from singlecard.reference.evaluate import evaluate

__all__ = ["evaluate"]
