"""Images mirrored and moved at random, by a counter as all noise here: the same for any number of workers."""

from __future__ import annotations

import torch
from torch import Tensor

from distindex.hashing import noise


def augment(x_BHWC: Tensor, flip: bool, shift: int, key: int, row_B: Tensor) -> Tensor:
    """Mirror half of the images left to right, and move each by up to `shift` pixels both ways.

    What moves in at an edge repeats the edge. Pixels of any type; `row_B` is as in `Batch`.
    """
    if not flip and not shift:
        return x_BHWC
    rows, height, width, _ = x_BHWC.shape
    u_B3 = noise.uniform(key, row_B, 3)
    y_BH = torch.arange(height, device=x_BHWC.device).expand(rows, height)
    x_BW = torch.arange(width, device=x_BHWC.device).expand(rows, width)
    if flip:
        x_BW = torch.where(u_B3[:, :1] < 0.5, width - 1 - x_BW, x_BW)
    if shift:
        move_B2 = (u_B3[:, 1:] * (2 * shift + 1)).floor().to(torch.int64) - shift
        y_BH = (y_BH + move_B2[:, :1]).clamp(0, height - 1)
        x_BW = (x_BW + move_B2[:, 1:]).clamp(0, width - 1)
    return x_BHWC[torch.arange(rows, device=x_BHWC.device)[:, None, None], y_BH[:, :, None], x_BW[:, None, :]]


def drop_pixels(x_BV: Tensor, channels: int, share: float, key: int, row_B: Tensor) -> Tensor:
    """Set a share of each image's standardized pixels to the mean, all channels of a pixel together."""
    if share == 0:
        return x_BV
    x_BPC = x_BV.view(len(x_BV), -1, channels)
    keep_BP = noise.uniform(key, row_B, x_BPC.shape[1]) >= share
    return (x_BPC * keep_BP[:, :, None]).view(len(x_BV), -1)
