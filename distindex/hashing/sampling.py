"""Random choices among the rows of the global batch, the same for any number of workers."""

from __future__ import annotations

import torch
from torch import Tensor

from distindex.hashing import noise


def choose(eligible_BG: Tensor, key: int, row_B: Tensor, preferred_BG: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One eligible row for each of this worker's rows, a preferred one where there is one.

    Returns:
        The chosen rows' numbers `[B]` and whether any was eligible `[B]`; where none was, the number is 0.
    """
    score_BG = noise.uniform(key, row_B, eligible_BG.shape[1])
    if preferred_BG is not None:
        score_BG = score_BG + preferred_BG
    return (score_BG * eligible_BG).argmax(dim=1), eligible_BG.any(dim=1)


def choose_ranked(order_BG: Tensor, first: int, stop: int, key: int, row_B: Tensor) -> Tensor:
    """One of the rows that stand at the ranks `first` to `stop - 1` of each row's order; `[B]`."""
    rank_B1 = first + (noise.uniform(key, row_B, 1) * (stop - first)).long().clamp_max(stop - first - 1)
    return order_BG.gather(1, rank_B1).squeeze(1)


def nearest_order(distance_BG: Tensor, own_BG: Tensor) -> Tensor:
    """Each row's order of all rows, by distance; the row itself stands first."""
    return distance_BG.masked_fill(own_BG, -torch.inf).argsort(dim=1, stable=True)
