"""SSDH: semi-supervised deep hashing by triplets, a neighbour graph built on the way, and pseudo-labels.

Source: Zhang and Peng, IEEE TCSVT 2017, arXiv 1607.08477, losses as in the released code
(PKU-ICST-MIPL/SSDH_TCSVT2017). With b = sigmoid(logit), D_ij = ||b_i - b_j||^2, and one random p and n for
each anchor i in each step, among the rows of the global batch:

    rank   = 1/(2 N) sum over labeled i of relu( margin + D_ip - D_in ),
             p shares a label with i, n shares none (nor with p, where there is such a row)
    graph  = 1/(2 N) sum over all i of [ D_ip + relu(m - sqrt D_in)^2 ],
             p among the nearest `neighbors` rows, n among ranks [0.89, 0.97) of the batch by distance
    pseudo = the same over unlabeled i: with c+ and c- the most and least likely class of i,
             p is an unlabeled row whose likeliest class is c+, or a labeled one with c+ and not c-, n vice versa
    class  = mean over labeled i of the classifier's loss
    total  = pair_weight rank + graph_weight (graph + pseudo) + class_weight class

Each N counts the anchors that found both p and n. The graph's distances are those of the last hidden layer
(`method.graph` features) or of b (codes). m = 2.5 at 12 bits and 3.0 at 48, as released, linear between and beyond.
Choices are not differentiated. Differences: a row is not its own neighbour, ranks scale with the batch, the
classifier's loss is a softmax for single labels and sigmoids for several, the network is the methods' common encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distindex.hashing import objectives, pairs
from distindex.hashing.base import Method, Problem
from distindex.hashing.batch import Batch
from distindex.hashing.distributed import gather_rows
from distindex.hashing.networks import glorot_linear
from distindex.hashing.noise import key_of
from distindex.hashing.sampling import choose, choose_ranked, nearest_order
from distindex.method_config import MethodConfig

_FAR = (0.89, 0.97)


def far_margin(bits: int) -> float:
    """The distance that neighbours' opposites are pushed apart to."""
    return 2.5 + 0.5 * (bits - 12) / 36


class SSDH(Method):
    """Network and loss of SSDH."""

    needs_labels = True

    def __init__(self, problem: Problem, config: MethodConfig) -> None:
        super().__init__(problem, config)
        self.classifier = glorot_linear(config.hidden[-1], problem.classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms rank, graph, pseudo, class and total."""
        hidden_BU = self.hidden(batch)
        code_BK = torch.sigmoid(self.encoder.logits(hidden_BU))
        class_logit_BC = self.classifier(hidden_BU)
        distance_BG = pairs.squared_distances(code_BK, gather_rows(code_BK, batch.global_rows))
        label_GC = gather_rows(batch.label_BC, batch.global_rows)
        labeled_B = batch.label_BC.any(dim=1)
        class_B = objectives.class_cross_entropy(class_logit_BC, batch.label_BC, self.multi)
        terms = {
            "rank": self._rank(distance_BG, label_GC, batch),
            "graph": self._graph(distance_BG, hidden_BU.detach(), batch),
            "pseudo": self._pseudo(distance_BG, class_logit_BC.detach(), label_GC, batch),
            "class": objectives.mean_over_chosen(class_B, labeled_B),
        }
        weights = self.weights
        terms["total"] = (
            weights.pair_weight * terms["rank"]
            + weights.graph_weight * (terms["graph"] + terms["pseudo"])
            + weights.class_weight * terms["class"]
        )
        return terms

    def _rank(self, distance_BG: Tensor, label_GC: Tensor, batch: Batch) -> Tensor:
        shared_GG = label_GC @ label_GC.T > 0
        labeled_G = label_GC.any(dim=1)
        shared_BG = shared_GG[batch.row_B]
        positive_BG = shared_BG & ~pairs.own_pairs(batch.row_B, len(label_GC))
        p_B, has_p_B = choose(positive_BG, key_of(batch.key, 301), batch.row_B)
        negative_BG = ~shared_BG & labeled_G[None, :] & labeled_G[batch.row_B][:, None]
        n_B, has_n_B = choose(negative_BG, key_of(batch.key, 302), batch.row_B, preferred_BG=~shared_GG[p_B])
        loss_B = F.relu(self.weights.margin + _at(distance_BG, p_B) - _at(distance_BG, n_B))
        return 0.5 * objectives.mean_over_chosen(loss_B, has_p_B & has_n_B)

    def _graph(self, distance_BG: Tensor, hidden_BU: Tensor, batch: Batch) -> Tensor:
        rows = distance_BG.shape[1]
        if self.config.graph == "features":
            graph_BG = pairs.squared_distances(hidden_BU, gather_rows(hidden_BU, batch.global_rows))
        else:
            graph_BG = distance_BG.detach()
        order_BG = nearest_order(graph_BG, pairs.own_pairs(batch.row_B, rows))
        near = max(2, min(self.config.neighbors + 1, rows))
        far = min(int(_FAR[0] * rows), rows - 1)
        p_B = choose_ranked(order_BG, 1, near, key_of(batch.key, 303), batch.row_B)
        n_B = choose_ranked(order_BG, far, max(far + 1, int(_FAR[1] * rows)), key_of(batch.key, 304), batch.row_B)
        every_B = torch.ones_like(p_B, dtype=torch.bool)
        return self._attract_and_repel(distance_BG, p_B, n_B, every_B)

    def _pseudo(self, distance_BG: Tensor, class_logit_BC: Tensor, label_GC: Tensor, batch: Batch) -> Tensor:
        best_B, worst_B = class_logit_BC.argmax(dim=1), class_logit_BC.argmin(dim=1)
        best_G = gather_rows(class_logit_BC, batch.global_rows).argmax(dim=1)
        unlabeled_G = ~label_GC.any(dim=1)
        has_best_BG, has_worst_BG = label_GC[:, best_B].T > 0, label_GC[:, worst_B].T > 0
        positive_BG = (unlabeled_G & (best_B[:, None] == best_G)) | (has_best_BG & ~has_worst_BG)
        negative_BG = (unlabeled_G & (worst_B[:, None] == best_G)) | (has_worst_BG & ~has_best_BG)
        positive_BG = positive_BG & ~pairs.own_pairs(batch.row_B, len(label_GC))
        p_B, has_p_B = choose(positive_BG, key_of(batch.key, 305), batch.row_B)
        n_B, has_n_B = choose(negative_BG, key_of(batch.key, 306), batch.row_B)
        return self._attract_and_repel(distance_BG, p_B, n_B, unlabeled_G[batch.row_B] & has_p_B & has_n_B)

    def _attract_and_repel(self, distance_BG: Tensor, p_B: Tensor, n_B: Tensor, chosen_B: Tensor) -> Tensor:
        """`1/(2 N) sum over chosen i of [ D_ip + relu(m - sqrt D_in)^2 ]`."""
        # The root has no gradient at 0, where two codes are equal.
        apart_B = F.relu(far_margin(self.encoder.bits) - (_at(distance_BG, n_B) + 1e-12).sqrt())
        return 0.5 * objectives.mean_over_chosen(_at(distance_BG, p_B) + apart_B**2, chosen_B)


def _at(distance_BG: Tensor, index_B: Tensor) -> Tensor:
    return distance_BG.gather(1, index_B[:, None]).squeeze(1)
