"""SSB-VAE: the self-supervised Bernoulli autoencoder for semi-supervised hashing.

Source: Nanculef, Mena, Macaluso, Lodi, Sartori, arXiv 2007.08799; losses as its code executes them
(amacaluso/SSB-VAE), in a form that does not depend on the batch size:

    total = mean_i[ Rec_i + kl_weight KL_i ] + class_weight mean_i[ CE_i ]
          + pair_weight 1/K mean_ij[ s_ij D_ij + (1 - s_ij) relu(m - D_ij) ],  m = margin K, margin = 1/3

with b = sigmoid((logit + logistic noise) / temperature), D the squared distance of relaxed codes b, and
s_ij = p_i.p_j the similarity that the classifier itself predicts (self-supervision), on labeled and
unlabeled rows alike. All ordered pairs count, the diagonal too: there it is m (1 - ||p_i||^2) / K and
sharpens the predictions. The classifier reads the last hidden layer, not the code. With answered pairs P, whose
similarity s_ij is known, there come to it

    answer_weight pair_weight 1/K mean_P[ s_ij D_ij + (1 - s_ij) relu(m - D_ij) ]
    + answer_weight class_weight mean_P[ - s_ij ln p_i.p_j - (1 - s_ij) ln(1 - p_i.p_j) ]

Differences to the reference: log-softmax in place of clipping at 1e-7, a Gaussian decoder for vectors, sigmoids
for several labels a row, optional dropout, and the total is divided by its largest weight. The reference mode
(`method.reference`) takes all of them back: probabilities clipped at 1e-7, a softmax decoder for vectors (which is
no likelihood for standardized ones), one softmax over several labels, no dropout, no division. Two things differ
there still: the last, short batch of an epoch weighs its pairs as any other (the reference sums over its pairs),
and weights are those of means; `reference_weights` translates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distindex.hashing import noise, objectives, pairs
from distindex.hashing.base import Autoencoder
from distindex.hashing.batch import AnsweredPairs, Batch
from distindex.hashing.distributed import gather_rows, gather_together


def reference_weights(alpha: float, gamma: float, batch_size: int = 100) -> tuple[float, float]:
    """`(class_weight, pair_weight)` for the reference's alpha and gamma; its pair loss is a sum over B^2 pairs."""
    return alpha * gamma, alpha * batch_size**2


class SSBVAE(Autoencoder):
    """Network and loss of SSB-VAE; without labels the autoencoder's terms alone."""

    reads_pairs = True

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms reconstruction, kl, class, pair and total."""
        weights = self.weights
        hidden_BU = self.hidden(batch)
        logit_BK = self.encoder.logits(hidden_BU)
        logistic_BK = noise.logistic(noise.key_of(batch.key, 200), batch.row_B, logit_BK.shape[1])
        code_BK = torch.sigmoid((logit_BK + logistic_BK) / self.config.temperature)
        bernoulli_kl = objectives.reference_bernoulli_kl if self.config.reference else objectives.bernoulli_kl
        terms = {
            "reconstruction": self.reconstruction(code_BK, batch),
            "kl": objectives.mean_over_global_batch(bernoulli_kl(logit_BK), batch.global_rows),
        }
        total = terms["reconstruction"] + weights.kl_weight * terms["kl"]
        for name, (weight, term) in self.label_terms(code_BK, hidden_BU, batch).items():
            terms[name] = term
            total = total + weight * term
        terms["total"] = self.scaled(total)
        return terms

    def label_terms(self, code_BK: Tensor, hidden_BU: Tensor, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """The terms that labels and answered pairs take part in, with their weights; none where there are neither."""
        terms = {}
        class_logit_BC = None
        if self.classifier is not None:
            class_logit_BC = self.classifier(hidden_BU)
            terms["class"] = (self.weights.class_weight, self.class_loss(class_logit_BC, batch))
            terms["pair"] = (self.weights.pair_weight, self.pair_loss(code_BK, class_logit_BC, batch))
        if batch.answered is not None:
            terms |= self.answered_terms(code_BK, class_logit_BC, batch, batch.answered)
        return terms

    def pair_loss(self, code_BK: Tensor, class_logit_BC: Tensor, batch: Batch) -> Tensor:
        """The mean contrast over all ordered pairs, similarity as the classifier predicts it."""
        p_BC = objectives.class_probabilities(class_logit_BC, self.multi)
        code_GK, p_GC = gather_together([code_BK, p_BC], batch.global_rows)
        contrast_BG = pairs.contrast(code_BK, code_GK, p_BC @ p_GC.T, self.weights.margin)
        return pairs.mean_over_pairs(contrast_BG, batch.global_rows**2)

    def answered_terms(
        self, code_BK: Tensor, class_logit_BC: Tensor | None, batch: Batch, answered: AnsweredPairs
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms over answered pairs: their codes, and the similarity that the classifier predicts."""
        cells, count = pairs.answered_cells(answered, batch.row_B), 2 * len(answered)
        code_GK = gather_rows(code_BK, batch.global_rows)
        contrast_A = pairs.answered_contrast(code_BK, code_GK, cells, self.weights.margin)
        share = self.config.answer_weight
        terms = {"answered": (share * self.weights.pair_weight, pairs.mean_over_pairs(contrast_A, count))}
        if class_logit_BC is not None:
            p_BC = objectives.class_probabilities(class_logit_BC, self.multi)
            likelihood_A = pairs.answered_likelihood(p_BC, gather_rows(p_BC, batch.global_rows), cells)
            terms["agreement"] = (share * self.weights.class_weight, pairs.mean_over_pairs(likelihood_A, count))
        return terms
