"""Loss terms over pairs of rows of the global batch, each with its formula.

This worker's B rows stand against the G rows of all workers, labels and masks gathered with them. Each term is
scaled such that its average over the workers is the mean over the global batch's pairs; with the differentiable
gather its gradient is then that of one worker with all rows.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distindex.hashing.batch import AnsweredPairs, Batch
from distindex.hashing.distributed import gather_rows, world_size
from distindex.hashing.objectives import FLOOR


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What labels and answers say about the pairs of this worker's rows and all rows.

    Attributes:
        similar_BG: 1 where both rows share a label or were answered to be alike, else 0; also 0 where neither is
            known.
        known_BG: whether both rows are labeled and differ, or the pair was answered.
        known: the number of such pairs in the global batch.
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
    return Pairs(similar_BG, known_BG, labeled * (labeled - 1))


def known_pairs(batch: Batch) -> Pairs:
    """Similarity by labels, and by answers about pairs."""
    found = labeled_pairs(batch.label_BC, batch.row_B, batch.global_rows)
    if batch.answered is None:
        return found
    cells = answered_cells(batch.answered, batch.row_B)
    found.similar_BG[cells.row_A, cells.column_A] = cells.similar_A.to(found.similar_BG.dtype)
    found.known_BG[cells.row_A, cells.column_A] = True
    # No answered pair has two labeled rows: none is counted twice.
    return dataclasses.replace(found, known=found.known + 2 * len(batch.answered))


class Cells(NamedTuple):
    """Where answered pairs stand among this worker's pairs `[B, G]`, each pair in both orders.

    Attributes:
        row_A: row in this worker's share.
        column_A: row in the global batch.
        similar_A: whether they are alike.
    """

    row_A: Tensor
    column_A: Tensor
    similar_A: Tensor


def answered_cells(answered: AnsweredPairs, row_B: Tensor) -> Cells:
    """The answered pairs whose first row is one of this worker's, in both orders."""
    first_Q = torch.cat([answered.left_P, answered.right_P])
    second_Q = torch.cat([answered.right_P, answered.left_P])
    begin = int(row_B[0]) if len(row_B) else 0
    own_Q = (first_Q >= begin) & (first_Q < begin + len(row_B))
    return Cells(first_Q[own_Q] - begin, second_Q[own_Q], answered.similar_P.repeat(2)[own_Q])


def answered_rows(batch: Batch) -> Tensor:
    """`paired_B`: which of this worker's rows stand in an answered pair."""
    paired_B = torch.zeros(len(batch.row_B), dtype=torch.bool, device=batch.row_B.device)
    if batch.answered is not None:
        paired_B[answered_cells(batch.answered, batch.row_B).row_A] = True
    return paired_B


def own_pairs(row_B: Tensor, global_rows: int) -> Tensor:
    """`own_BG`: where a row meets itself."""
    return row_B[:, None] == torch.arange(global_rows, device=row_B.device)[None, :]


def squared_distances(a_BK: Tensor, b_GK: Tensor) -> Tensor:
    """`D_ij = ||a_i||^2 - 2 a_i.b_j + ||b_j||^2`, clamped at 0."""
    return (a_BK.square().sum(1)[:, None] - 2 * a_BK @ b_GK.T + b_GK.square().sum(1)[None, :]).clamp_min(0)


def mean_over_pairs(loss_BG: Tensor, pairs: int) -> Tensor:
    """The sum over all workers' pairs, divided by their number, once the workers' results are averaged.

    0 where there are none, as `loss_BG` is 0 then.
    """
    return loss_BG.sum() * (world_size() / max(1, pairs))


def contrast(code_BK: Tensor, code_GK: Tensor, similar_BG: Tensor, margin: float) -> Tensor:
    """`1/K [ s_ij D_ij + (1 - s_ij) relu(m - D_ij) ]` of every pair `[B, G]`, with `m = margin K`.

    `margin` is a share of the bits; D is the squared distance of relaxed codes.
    Source: the pair term of SSB-VAE (margin 1/3).
    """
    bits = code_BK.shape[1]
    distance_BG = squared_distances(code_BK, code_GK)
    return (similar_BG * distance_BG + (1 - similar_BG) * F.relu(margin * bits - distance_BG)) / bits


def answered_contrast(code_BK: Tensor, code_GK: Tensor, cells: Cells, margin: float) -> Tensor:
    """`contrast` of the answered pairs alone, `[A]`."""
    bits = code_BK.shape[1]
    distance_A = (code_BK[cells.row_A] - code_GK[cells.column_A]).square().sum(1)
    return torch.where(cells.similar_A, distance_A, F.relu(margin * bits - distance_A)) / bits


def answered_likelihood(p_BC: Tensor, p_GC: Tensor, cells: Cells) -> Tensor:
    """`- s_ij ln(p_i . p_j) - (1 - s_ij) ln(1 - p_i . p_j)` of the answered pairs, `[A]`.

    The negative log-likelihood of the answers by the similarity that the classifier predicts.
    Source: Hsu, Lv, Schlosser, Odom, Kira, Multi-class Classification without Multi-class Labels, ICLR 2019.
    """
    similar_A = (p_BC[cells.row_A] * p_GC[cells.column_A]).sum(1).clamp(FLOOR, 1 - FLOOR)
    return -torch.where(cells.similar_A, similar_A.log(), (1 - similar_A).log())


def log_likelihood(output_BK: Tensor, similar_BG: Tensor) -> Tensor:
    """`log(1 + e^t_ij) - s_ij t_ij` of every pair, with `t_ij = 1/2 u_i . u_j`.

    The negative log-likelihood of the similarities when `P(s_ij = 1) = sigmoid(t_ij)`.
    Source: DPSH (Li, Wang, Kang, IJCAI 2016).
    """
    theta_BG = 0.5 * output_BK @ gather_rows(output_BK, similar_BG.shape[1]).T
    return F.softplus(theta_BG) - similar_BG * theta_BG
