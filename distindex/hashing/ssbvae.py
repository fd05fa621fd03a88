"""SSB-VAE: the self-supervised Bernoulli autoencoder for semi-supervised hashing.

Source: Nanculef, Mena, Macaluso, Lodi, Sartori, arXiv 2007.08799; losses as its code executes them, in a
form that does not depend on the batch size:

    total = mean_i[ Rec_i + kl_weight KL_i ] + class_weight mean_i[ CE_i ]
          + pair_weight 1/K mean_ij[ s_ij D_ij + (1 - s_ij) relu(K/3 - D_ij) ]

with b = sigmoid((logit + logistic noise) / temperature), D the squared distance of relaxed codes b, and
s_ij = p_i.p_j the similarity that the classifier itself predicts (self-supervision), on labeled and
unlabeled rows alike. Differences to the reference: log-softmax in place of clipping at 1e-7, a Gaussian
decoder for vectors, optional dropout, and the total is divided by its largest weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distindex.config import MethodConfig
from distindex.hashing import noise, objectives
from distindex.hashing.batch import Batch
from distindex.hashing.networks import Encoder, drop_inputs, glorot_linear


def reference_weights(alpha: float, gamma: float, batch_size: int = 100) -> tuple[float, float]:
    """`(class_weight, pair_weight)` for the reference's alpha and gamma; its pair loss is a sum over B^2 pairs."""
    return alpha * gamma, alpha * batch_size**2


class SSBVAE(nn.Module):
    """Network and loss of SSB-VAE.

    Args:
        width: input features V.
        bits: code length K.
        classes: number of labels C; 0 trains without labels, on the autoencoder's terms alone.
        multi: rows may have several labels.
        sparse: the input is term frequencies (multinomial decoder) rather than vectors (Gaussian decoder).
        config: the method's settings.
    """

    def __init__(self, width: int, bits: int, classes: int, multi: bool, sparse: bool, config: MethodConfig) -> None:
        super().__init__()
        self.config, self.multi, self.sparse = config, multi, sparse
        self.encoder = Encoder(width, config.hidden, bits, config.dropout)
        self.decoder = glorot_linear(bits, width)
        self.classifier = glorot_linear(config.hidden[-1], classes) if classes else None
        self.scale = 1.0
        if classes:
            self.scale /= max(1.0, config.class_weight, config.pair_weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of one step; `total` is what is minimised, the others are for people to read.

        Each is scaled such that its average over the workers is its value over the global batch.
        """
        config, rows = self.config, batch.global_rows
        x_BV = batch.x_BV
        if self.training:
            x_BV = drop_inputs(x_BV, config.input_dropout, noise.key_of(batch.key, 100), batch.row_B)
        hidden_BU = self.encoder.hidden(x_BV, batch.key, batch.row_B)
        logit_BK = self.encoder.logits(hidden_BU)
        code_BK = self._sample(logit_BK, batch)
        decoded_BV = self.decoder(code_BK)
        if self.sparse:
            reconstruction_B = objectives.multinomial_reconstruction(decoded_BV, batch.target_BV)
        else:
            reconstruction_B = objectives.gaussian_reconstruction(decoded_BV, batch.target_BV)  # type: ignore[arg-type]
        terms = {
            "reconstruction": objectives.mean_over_global_batch(reconstruction_B, rows),
            "kl": objectives.mean_over_global_batch(objectives.bernoulli_kl(logit_BK), rows),
        }
        total = terms["reconstruction"] + config.kl_weight * terms["kl"]
        if self.classifier is not None:
            class_logit_BC = self.classifier(hidden_BU)
            class_B = objectives.class_cross_entropy(class_logit_BC, batch.label_BC, self.multi)
            p_BC = objectives.class_probabilities(class_logit_BC, self.multi)
            terms["class"] = objectives.mean_over_global_batch(class_B, rows)
            terms["pair"] = objectives.pair_contrast(code_BK, p_BC, rows)
            total = total + config.class_weight * terms["class"] + config.pair_weight * terms["pair"]
        terms["total"] = total * self.scale
        return terms

    def _sample(self, logit_BK: Tensor, batch: Batch) -> Tensor:
        """Binary concrete sample `sigmoid((logit + logistic noise) / temperature)`."""
        u_BK = noise.uniform(noise.key_of(batch.key, 200), batch.row_B, logit_BK.shape[1])
        logistic_BK = torch.log(u_BK + 1e-7) - torch.log(1 - u_BK + 1e-7)
        return torch.sigmoid((logit_BK + logistic_BK) / self.config.temperature)
