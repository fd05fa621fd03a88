"""DPSH and DSH: supervised hashing by pairs of labeled rows.

Unlabeled rows take part in the batch statistics only, so give these methods labeled rows
(`optimization.labeled_fraction`). u is the encoder's linear output, s_ij = [rows i and j share a label], and
means over pairs run over the pairs of two different labeled rows of the global batch and the answered pairs, means
over i over the rows of these. Bit j = [u_j > 0].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distindex.hashing import objectives, pairs
from distindex.hashing.base import Method
from distindex.hashing.batch import Batch
from distindex.hashing.distributed import gather_rows


def quantization(output_BK: Tensor, batch: Batch, power: int) -> Tensor:
    """`mean over known i of sum_j | |u_ij| - 1 |^power`: how far the outputs are from their signs."""
    distance_B = ((output_BK.abs() - 1).abs() ** power).sum(1)
    return objectives.mean_over_chosen(distance_B, batch.label_BC.any(dim=1) | pairs.answered_rows(batch))


class DPSH(Method):
    """Deep pairwise-supervised hashing.

        total = pair_weight mean_ij[ log(1 + e^t_ij) - s_ij t_ij ]
              + quantization_weight 1/K mean_i ||u_i - sign u_i||^2

    with t_ij = 1/2 u_i.u_j. Source: Li, Wang, Kang, IJCAI 2016, and TreezzZ/DPSH_PyTorch; there each batch
    meets a buffer of all rows' outputs, here the rows of the global batch.
    """

    needs_labels = True
    reads_pairs = True

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms pair, quantization and total."""
        output_BK = self.encoder.logits(self.hidden(batch))
        known = pairs.known_pairs(batch)
        loss_BG = pairs.log_likelihood(output_BK, known.similar_BG)
        terms = {
            "pair": pairs.mean_over_pairs(loss_BG * known.known_BG, known.known),
            "quantization": quantization(output_BK, batch, 2) / output_BK.shape[1],
        }
        terms["total"] = (
            self.weights.pair_weight * terms["pair"] + self.weights.quantization_weight * terms["quantization"]
        )
        return terms


class DSH(Method):
    """Deep supervised hashing.

        total = pair_weight mean_ij[ 1/2 s_ij D_ij + 1/2 (1 - s_ij) relu(m - D_ij) ]
              + quantization_weight mean_i || |u_i| - 1 ||_1

    with D the squared distance of outputs u and m = margin K, margin = 2.
    Source: Liu, Wang, Shan, Chen, CVPR 2016, and swuxyj/DeepHash-pytorch (DSH.py).
    """

    needs_labels = True
    reads_pairs = True

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms pair, quantization and total."""
        output_BK = self.encoder.logits(self.hidden(batch))
        known = pairs.known_pairs(batch)
        distance_BG = pairs.squared_distances(output_BK, gather_rows(output_BK, batch.global_rows))
        apart_BG = F.relu(self.weights.margin * output_BK.shape[1] - distance_BG)
        loss_BG = 0.5 * (known.similar_BG * distance_BG + (1 - known.similar_BG) * apart_BG)
        terms = {
            "pair": pairs.mean_over_pairs(loss_BG * known.known_BG, known.known),
            "quantization": quantization(output_BK, batch, 1),
        }
        terms["total"] = (
            self.weights.pair_weight * terms["pair"] + self.weights.quantization_weight * terms["quantization"]
        )
        return terms
