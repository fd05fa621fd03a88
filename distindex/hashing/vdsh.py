"""VDSH-S: the supervised Gaussian autoencoder for hashing.

Source: Chaidaroon and Fang, SIGIR 2017, arXiv 1708.03436, as SSB-VAE's code runs it for comparison
(amacaluso/SSB-VAE, M = 1):

    z = mu + exp(logvar / 2) e,  e ~ N(0, 1)
    total = mean_i[ Rec_i(z) + kl_weight KL_i ] + class_weight mean_i[ CE_i(z) ]
    KL_i = -1/2 sum_j [1 + logvar_ij - mu_ij^2 - exp(logvar_ij)]

with mu and logvar linear in the last hidden layer, decoder and classifier both on z, and bit j = [mu_j > 0] (the
original takes the median). An unlabeled row has CE = 0. The reference mode is that of `ssbvae`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distindex.hashing import noise, objectives
from distindex.hashing.base import Autoencoder, Problem
from distindex.hashing.batch import Batch
from distindex.hashing.networks import glorot_linear
from distindex.method_config import MethodConfig


class VDSH(Autoencoder):
    """Network and loss of VDSH-S; without labels the autoencoder's terms alone."""

    def __init__(self, problem: Problem, config: MethodConfig) -> None:
        super().__init__(problem, config, class_inputs=problem.bits)
        self.log_variance = glorot_linear(config.hidden[-1], problem.bits)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms reconstruction, kl, class and total."""
        hidden_BU = self.hidden(batch)
        mean_BK, log_variance_BK = self.encoder.logits(hidden_BU), self.log_variance(hidden_BU)
        normal_BK = noise.normal(noise.key_of(batch.key, 200), batch.row_B, mean_BK.shape[1])
        z_BK = mean_BK + torch.exp(0.5 * log_variance_BK) * normal_BK
        kl_B = objectives.gaussian_kl(mean_BK, log_variance_BK)
        terms = {
            "reconstruction": self.reconstruction(z_BK, batch),
            "kl": objectives.mean_over_global_batch(kl_B, batch.global_rows),
        }
        total = terms["reconstruction"] + self.weights.kl_weight * terms["kl"]
        if self.classifier is not None:
            terms["class"] = self.class_loss(self.classifier(z_BK), batch)
            total = total + self.weights.class_weight * terms["class"]
        terms["total"] = self.scaled(total)
        return terms
