"""Loss terms of single rows, each with its formula; the terms over pairs of rows are in `pairs`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distindex.hashing.batch import Rows, SparseRows
from distindex.hashing.distributed import sum_over_workers, world_size

FLOOR = 1e-7
"""What the reference code adds to or clips probabilities at, Keras' epsilon."""


class _Multinomial(torch.autograd.Function):
    """The loss and its gradients with two tables `[B, V]`.

    Written out, the same formula makes seven of them, and moving them to and from memory takes longer than
    all the arithmetic.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, code_BK: Tensor, weight_VK: Tensor, bias_V: Tensor, row_M: Tensor, column_M: Tensor, value_M: Tensor
    ) -> Tensor:
        logit_BV = torch.addmm(bias_V, code_BK, weight_VK.T)
        most_B1 = logit_BV.amax(1, keepdim=True)
        entry_M = logit_BV[row_M, column_M] - most_B1[row_M, 0]
        power_BV = logit_BV.sub_(most_B1).exp_()
        sum_B = power_BV.sum(1)
        loss_M = value_M * (sum_B.log()[row_M] - entry_M)
        ctx.save_for_backward(code_BK, weight_VK, row_M, column_M, value_M, power_BV, sum_B)
        return code_BK.new_zeros(len(code_BK)).index_add(0, row_M, loss_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        code_BK, weight_VK, row_M, column_M, value_M, power_BV, sum_B = ctx.saved_tensors
        mass_B = code_BK.new_zeros(len(code_BK)).index_add(0, row_M, value_M)
        logit_gradient_BV = power_BV * (gradient_B * mass_B / sum_B)[:, None]
        logit_gradient_BV.index_put_((row_M, column_M), -gradient_B[row_M] * value_M, accumulate=True)
        return (
            logit_gradient_BV @ weight_VK,
            logit_gradient_BV.T @ code_BK,
            logit_gradient_BV.sum(0),
            None,
            None,
            None,
        )


def multinomial_reconstruction(code_BK: Tensor, weight_VK: Tensor, bias_V: Tensor, target_BV: SparseRows) -> Tensor:
    """`Rec_i = - sum_w x_iw log softmax(W b_i + c)_w`, over the words that occur.

    `target_BV` holds term frequencies that sum to 1, or an empty row, whose loss is 0.
    """
    entries = (target_BV.row_M, target_BV.column_M, target_BV.value_M)
    return _Multinomial.apply(code_BK, weight_VK, bias_V, *entries)  # type: ignore[no-any-return]


def reference_reconstruction(logit_BV: Tensor, target_BV: Rows) -> Tensor:
    """`Rec_i = - sum_v x_iv log clip(softmax(logit_i)_v, 1e-7, 1)`, as the reference code has it.

    For vectors too, whose negative entries then reward a probability of 0: no likelihood, bounded by the clip.
    """
    log_BV = F.log_softmax(logit_BV, dim=1).clamp_min(math.log(FLOOR))
    if isinstance(target_BV, SparseRows):
        row_M = target_BV.row_M
        entry_M = -target_BV.value_M * log_BV[row_M, target_BV.column_M]
        return logit_BV.new_zeros(len(logit_BV)).index_add(0, row_M, entry_M)
    return -(target_BV * log_BV).sum(1)


def gaussian_reconstruction(mean_BV: Tensor, target_BV: Tensor) -> Tensor:
    """`Rec_i = 8 mean_v (x_iv - mean_iv)^2`: a Gaussian likelihood of variance V/16, without its constant.

    With this variance the loss of a standardized vector is about as large as a text's, whatever its width,
    and the weights of the other terms mean the same for both.
    """
    return 8 * ((mean_BV - target_BV) ** 2).mean(1)


def bernoulli_reconstruction(logit_BV: Tensor, target_BV: Tensor) -> Tensor:
    """`Rec_i = 32 mean_v [ x ln(x / p) + (1 - x) ln((1 - x) / (1 - p)) ]`, p = sigmoid(logit), x in [0, 1].

    A Bernoulli likelihood of pixels without what no prediction can avoid, their entropy. With this factor the loss
    of predicting each pixel's mean is about as large as that of a standardized vector.
    """
    entropy_BV = torch.special.entr(target_BV) + torch.special.entr(1 - target_BV)
    return 32 * (F.binary_cross_entropy_with_logits(logit_BV, target_BV, reduction="none") - entropy_BV).mean(1)


def bernoulli_kl(logit_BK: Tensor) -> Tensor:
    """`KL_i = K ln 2 + sum_j [q ln q + (1 - q) ln(1 - q)]`, q = sigmoid(logit), to the Bernoulli(1/2) prior."""
    q_BK = torch.sigmoid(logit_BK)
    entropy_BK = -(q_BK * F.logsigmoid(logit_BK) + (1 - q_BK) * F.logsigmoid(-logit_BK))
    return logit_BK.shape[1] * math.log(2) - entropy_BK.sum(1)


def reference_bernoulli_kl(logit_BK: Tensor) -> Tensor:
    """`bernoulli_kl` with 1e-7 added inside the logarithms, as the reference code has it."""
    q_BK = torch.sigmoid(logit_BK)
    entropy_BK = -(q_BK * torch.log(q_BK + FLOOR) + (1 - q_BK) * torch.log(1 - q_BK + FLOOR))
    return logit_BK.shape[1] * math.log(2) - entropy_BK.sum(1)


def gaussian_kl(mean_BK: Tensor, log_variance_BK: Tensor) -> Tensor:
    """`KL_i = -1/2 sum_j [1 + log v - mu^2 - v]` of N(mu, v) to the standard normal prior."""
    return -0.5 * (1 + log_variance_BK - mean_BK.square() - log_variance_BK.exp()).sum(1)


def reference_class_cross_entropy(logit_BC: Tensor, label_BC: Tensor) -> Tensor:
    """`CE_i = - sum_c y_ic log clip(softmax(logit_i)_c, 1e-7, 1)`, as the reference code has it.

    A row with several labels has several terms under one softmax.
    """
    return -(label_BC * F.log_softmax(logit_BC, dim=1).clamp_min(math.log(FLOOR))).sum(1)


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


def mean_over_global_batch(value_B: Tensor, global_rows: int) -> Tensor:
    """The mean over all workers' rows, once the workers' results are averaged."""
    return value_B.sum() * (world_size() / global_rows)


def mean_over_chosen(value_B: Tensor, chosen_B: Tensor) -> Tensor:
    """The mean over the chosen rows of all workers, once the workers' results are averaged; 0 if there is none."""
    chosen = sum_over_workers(chosen_B.sum()).clamp_min(1)
    return (value_B * chosen_B).sum() * world_size() / chosen
