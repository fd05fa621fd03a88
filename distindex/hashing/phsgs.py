"""PHS-GS: the Bernoulli autoencoder with a pair loss supervised by the labels.

Source: the baseline of SSB-VAE's code (amacaluso/SSB-VAE, M = 2), after Dadaneh et al., UAI 2020, arXiv 2005.10477.
Network and total are those of SSB-VAE (`ssbvae`), but the similarity of two rows comes from their labels:

    pair = 1/K mean_ij[ s_ij D_ij + (1 - s_ij) relu(m - D_ij) ],  s_ij = [rows i and j share a label]

As in the reference, a pair with an unlabeled row counts as dissimilar, two rows of one class included: where
labels are few, nearly all pairs push apart. `phs-gs-masked` takes the mean over the pairs of two different labeled
rows only. In the reference mode s_ij = y_i.y_j counts the shared labels, so that 1 - s_ij may be negative.
"""

from __future__ import annotations

from torch import Tensor

from distindex.hashing import pairs
from distindex.hashing.batch import Batch
from distindex.hashing.distributed import gather_rows
from distindex.hashing.ssbvae import SSBVAE


class PHSGS(SSBVAE):
    """Network and loss of PHS-GS; without labels the autoencoder's terms alone."""

    def pair_loss(self, code_BK: Tensor, class_logit_BC: Tensor, batch: Batch) -> Tensor:
        """The mean contrast over all ordered pairs; pairs with an unlabeled row are dissimilar."""
        if self.config.reference:
            similar_BG = batch.label_BC @ gather_rows(batch.label_BC, batch.global_rows).T
        else:
            similar_BG = pairs.labeled_pairs(batch.label_BC, batch.row_B, batch.global_rows).similar_BG
        code_GK = gather_rows(code_BK, batch.global_rows)
        contrast_BG = pairs.contrast(code_BK, code_GK, similar_BG, self.weights.margin)
        return pairs.mean_over_pairs(contrast_BG, batch.global_rows**2)


class MaskedPHSGS(SSBVAE):
    """PHS-GS with the pairs of labeled rows only."""

    def pair_loss(self, code_BK: Tensor, class_logit_BC: Tensor, batch: Batch) -> Tensor:
        """The mean contrast over the pairs of two different labeled rows."""
        known = pairs.labeled_pairs(batch.label_BC, batch.row_B, batch.global_rows)
        code_GK = gather_rows(code_BK, batch.global_rows)
        loss_BG = pairs.contrast(code_BK, code_GK, known.similar_BG, self.weights.margin)
        return pairs.mean_over_pairs(loss_BG * known.known_BG, known.known)
