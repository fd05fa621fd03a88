"""Loss terms over pairs of rows of the global batch, each with its formula.

This worker's B rows stand against the G rows of all workers, labels and masks gathered with them. Each term is
scaled such that its average over the workers is the mean over the global batch's pairs; with the differentiable
gather its gradient is then that of one worker with all rows.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from distindex.hashing.distributed import gather_rows, world_size


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What the labels say about the pairs of this worker's rows and all rows.

    Attributes:
        similar_BG: 1 where both rows share a label, else 0; also 0 where one of them is unlabeled.
        known_BG: whether both rows are labeled and differ.
        known: the number of such pairs in the global batch, at least 1.
    """

    similar_BG: Tensor
    known_BG: Tensor
    known: int


def labeled_pairs(label_BC: Tensor, row_B: Tensor, global_rows: int) -> Pairs:
    """Similarity by labels, with the labels of all workers' rows. A row's pair with itself is not known."""
    label_GC = gather_rows(label_BC, global_rows)
    labeled_B, labeled_G = label_BC.any(dim=1), label_GC.any(dim=1)
    similar_BG = (label_BC @ label_GC.T > 0).to(label_BC.dtype)
    known_BG = labeled_B[:, None] & labeled_G[None, :] & ~own_pairs(row_B, len(label_GC))
    labeled = int(labeled_G.sum())
    return Pairs(similar_BG, known_BG, max(1, labeled * (labeled - 1)))


def own_pairs(row_B: Tensor, global_rows: int) -> Tensor:
    """`own_BG`: where a row meets itself."""
    return row_B[:, None] == torch.arange(global_rows, device=row_B.device)[None, :]


def squared_distances(a_BK: Tensor, b_GK: Tensor) -> Tensor:
    """`D_ij = ||a_i||^2 - 2 a_i.b_j + ||b_j||^2`, clamped at 0."""
    return (a_BK.square().sum(1)[:, None] - 2 * a_BK @ b_GK.T + b_GK.square().sum(1)[None, :]).clamp_min(0)


def mean_over_pairs(loss_BG: Tensor, pairs: int) -> Tensor:
    """The sum over all workers' pairs, divided by their number, once the workers' results are averaged."""
    return loss_BG.sum() * (world_size() / pairs)


def contrast(code_BK: Tensor, code_GK: Tensor, similar_BG: Tensor, margin: float) -> Tensor:
    """`1/K [ s_ij D_ij + (1 - s_ij) relu(m - D_ij) ]` of every pair `[B, G]`, with `m = margin K`.

    `margin` is a share of the bits; D is the squared distance of relaxed codes.
    Source: the pair term of SSB-VAE (margin 1/3).
    """
    bits = code_BK.shape[1]
    distance_BG = squared_distances(code_BK, code_GK)
    return (similar_BG * distance_BG + (1 - similar_BG) * F.relu(margin * bits - distance_BG)) / bits


def log_likelihood(output_BK: Tensor, similar_BG: Tensor) -> Tensor:
    """`log(1 + e^t_ij) - s_ij t_ij` of every pair, with `t_ij = 1/2 u_i . u_j`.

    The negative log-likelihood of the similarities when `P(s_ij = 1) = sigmoid(t_ij)`.
    Source: DPSH (Li, Wang, Kang, IJCAI 2016).
    """
    theta_BG = 0.5 * output_BK @ gather_rows(output_BK, similar_BG.shape[1]).T
    return F.softplus(theta_BG) - similar_BG * theta_BG
