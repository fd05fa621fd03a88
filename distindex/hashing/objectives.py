"""Loss terms, each with its formula. All return one value per row, or a mean over pairs of the global batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distindex.hashing.batch import Rows, SparseRows
from distindex.hashing.distributed import gather_rows, world_size


def multinomial_reconstruction(logit_BV: Tensor, target_BV: Rows) -> Tensor:
    """`Rec_i = - sum_w x_iw log softmax(logit_i)_w`, over the words that occur.

    `target_BV` holds term frequencies that sum to 1, or an empty row, whose loss is 0.
    """
    log_normalizer_B = torch.logsumexp(logit_BV, dim=1)
    if isinstance(target_BV, SparseRows):
        row_M = target_BV.row_M
        entry_M = target_BV.value_M * (log_normalizer_B[row_M] - logit_BV[row_M, target_BV.column_M])
        return logit_BV.new_zeros(len(logit_BV)).index_add(0, row_M, entry_M)
    return target_BV.sum(1) * log_normalizer_B - (target_BV * logit_BV).sum(1)


def gaussian_reconstruction(mean_BV: Tensor, target_BV: Tensor) -> Tensor:
    """`Rec_i = 8 mean_v (x_iv - mean_iv)^2`: a Gaussian likelihood of variance V/16, without its constant.

    With this variance the loss of a standardized vector is about as large as a text's, whatever its width,
    and the weights of the other terms mean the same for both.
    """
    return 8 * ((mean_BV - target_BV) ** 2).mean(1)


def bernoulli_kl(logit_BK: Tensor) -> Tensor:
    """`KL_i = K ln 2 + sum_j [q ln q + (1 - q) ln(1 - q)]`, q = sigmoid(logit), to the Bernoulli(1/2) prior."""
    q_BK = torch.sigmoid(logit_BK)
    entropy_BK = -(q_BK * F.logsigmoid(logit_BK) + (1 - q_BK) * F.logsigmoid(-logit_BK))
    return logit_BK.shape[1] * math.log(2) - entropy_BK.sum(1)


def class_cross_entropy(logit_BC: Tensor, label_BC: Tensor, multi: bool) -> Tensor:
    """`CE_i = - sum_c y_ic log p_ic`; 0 for an unlabeled row.

    With several labels a row (`multi`) p is a sigmoid per class and the sum runs over both outcomes.
    """
    if not multi:
        return -(label_BC * F.log_softmax(logit_BC, dim=1)).sum(1)
    labeled_B = label_BC.any(dim=1)
    return F.binary_cross_entropy_with_logits(logit_BC, label_BC, reduction="none").sum(1) * labeled_B


def class_probabilities(logit_BC: Tensor, multi: bool) -> Tensor:
    """`p_BC` such that `p_i . p_j` is the predicted similarity of two rows, in [0, 1].

    Single labels: softmax, and the product is the probability that both rows have the same class. Several
    labels: sigmoids scaled to unit length, and the product is the cosine of the two label vectors.
    """
    if multi:
        return F.normalize(torch.sigmoid(logit_BC), dim=1)
    return F.softmax(logit_BC, dim=1)


def squared_distances(a_BK: Tensor, b_BK: Tensor) -> Tensor:
    """`D_ij = ||a_i||^2 - 2 a_i.b_j + ||b_j||^2`, clamped at 0."""
    return (a_BK.square().sum(1)[:, None] - 2 * a_BK @ b_BK.T + b_BK.square().sum(1)[None, :]).clamp_min(0)


def pair_contrast(code_BK: Tensor, p_BC: Tensor, global_rows: int) -> Tensor:
    """`1/K mean_ij [ s_ij D_ij + (1 - s_ij) relu(m - D_ij) ]`, s_ij = p_i.p_j, m = K/3, over the global batch.

    All ordered pairs count, the diagonal too: there it is `m (1 - ||p_i||^2)` and sharpens the predictions.
    This worker's rows against all columns, scaled so that the average over the workers is the mean.
    Source: SSB-VAE, its pair term divided by B^2.
    """
    column_GK, column_GC = gather_rows(code_BK), gather_rows(p_BC)
    distance_BG = squared_distances(code_BK, column_GK)
    similar_BG = p_BC @ column_GC.T
    bits = code_BK.shape[1]
    margin = bits / 3
    loss_BG = similar_BG * distance_BG + (1 - similar_BG) * F.relu(margin - distance_BG)
    return loss_BG.sum() * (world_size() / (bits * global_rows**2))


def mean_over_global_batch(value_B: Tensor, global_rows: int) -> Tensor:
    """The mean over all workers' rows, once the workers' results are averaged."""
    return value_B.sum() * (world_size() / global_rows)
