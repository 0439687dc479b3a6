"""Non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.reference.table import Call, evaluates


@evaluates("NMS")
def non_maximum_suppression(call: Call) -> tuple[Tensor, ...]:
    """Rows (batch, class, box), by batch and then by falling score, and their number."""
    boxes, scores, limit = call[0], call[1], int(call[2].item())
    iou_limit, score_limit = _scalar(call, 3), _scalar(call, 4)
    corners = _corners(boxes, call.text("bounding_box_format"))
    if corners.dim() == 3:
        corners = corners.unsqueeze(2).expand(-1, -1, scores.shape[2], -1)
    rows: list[tuple[int, int, int]] = []
    for batch in range(scores.shape[0]):
        considered = _considered(scores[batch], score_limit, call.integer("topk_box_limit"))
        found: list[tuple[float, int, int]] = []
        for label in range(scores.shape[2]):
            kept = _suppress(corners[batch, :, label], considered[:, label], limit, iou_limit)
            found += [(float(scores[batch, box, label]), label, box) for box in kept]
        found.sort(key=lambda row: -row[0])
        rows += [(batch, label, box) for _, label, box in found]
    selected = torch.tensor(rows, dtype=torch.int64, device=call.device).reshape(-1, 3)
    return selected, torch.tensor(len(rows), device=call.device)


def _scalar(call: Call, index: int) -> float:
    given = call.optional(index)
    return 0.0 if given is None else float(given.item())


def _corners(boxes: Tensor, kind: str) -> Tensor:
    """Boxes as two corners, the lower one first."""
    if kind == "CENTER_SIZES":
        center, size = boxes[..., :2], boxes[..., 2:]
        return torch.cat((center - size / 2, center + size / 2), dim=-1)
    one, other = boxes[..., :2], boxes[..., 2:]
    return torch.cat((torch.minimum(one, other), torch.maximum(one, other)), dim=-1)


def _considered(scores: Tensor, score_limit: float, count: int) -> Tensor:
    """Scores of one batch element, -inf for boxes that are not among the best of all classes."""
    flat = scores.flatten().masked_fill(scores.flatten() <= score_limit, -torch.inf)
    if 0 < count < flat.numel():
        flat[flat.argsort(dim=0, descending=True, stable=True)[count:]] = -torch.inf
    return flat.reshape(scores.shape)


def _suppress(corners: Tensor, scores: Tensor, limit: int, iou_limit: float) -> list[int]:
    order = scores.argsort(dim=0, descending=True, stable=True)
    order = order[scores[order] > -torch.inf]
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        best = order[0]
        kept.append(int(best))
        order = order[1:]
        order = order[_intersection_over_union(corners[best], corners[order]) <= iou_limit]
    return kept


def _intersection_over_union(box: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = (box[2:] - box[:2]).prod(-1) + (others[:, 2:] - others[:, :2]).prod(-1)
    return shared / (areas - shared)
