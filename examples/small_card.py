"""Run a model whose weights do not fit on a card, or on a card that no engine runs on.

    python examples/small_card.py

Plans a small network for a card with little memory, takes the precision and the memory budget that
the plan recommends, builds the engine and checks it, all without a card. Then it runs the model
where the script is: on its engine, whose weights stream from host memory, if there is a GPU that
engines run on; anywhere else with TorchInductor, and a warning that says why. The exit status is 1
if nothing fits, or an answer is wrong.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor, nn

import singlecard

#: Of the card, 0.5 GiB are left to CUDA and PyTorch; what remains holds half of the weights.
CARD = "530MiB"

#: Relative L2 error that FP16 may have.
TOLERANCE = 5e-3


class Blocks(nn.Module):
    """Eight layers with 8.4 million weights, added to what they are given."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.norm(x)  # type: ignore[no-any-return]


def main() -> int:
    parser = argparse.ArgumentParser(description="Plan for a small card, and run anywhere.")
    parser.add_argument("--card", default=CARD, help=f"memory or name of the card ({CARD})")
    parser.add_argument("--fallback", default="inductor", help="eager or inductor (inductor)")
    parser.add_argument("--cache-dir", help="folder of built engines (default: the user's cache)")
    given = parser.parse_args()

    torch.manual_seed(0)
    model, x = Blocks().eval(), torch.randn(4, 1024)
    cache = {"cache_dir": given.cache_dir}
    plan = singlecard.plan_memory(
        model, (x,), card=given.card, precisions=("fp16",), batches=[len(x)], options=cache
    )
    print(plan)
    if not plan.recommended:
        return 1
    row = plan.recommended[0]
    chosen = {**cache, "precision": row.precision, "memory_budget": row.memory_budget}
    report = singlecard.verify(model, (x,), options=chosen)
    print(f"The engine's network: error {report.relative_l2:.1e} (relative L2) against FP32.")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, x = model.to(device), x.to(device)
    options = {**chosen, "fallback": given.fallback}
    with torch.inference_mode():
        expected = model(x)
        answer = torch.compile(model, backend="singlecard", options=options)(x)
    error = float((answer - expected).norm() / expected.norm())
    print(f"The answer on {device}: error {error:.1e} (relative L2).")
    return int(max(error, report.relative_l2) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
