"""PTS3H: pairwise teacher and student for semi-supervised hashing.

Source: Zhang, Li, Zhang, arXiv 1902.00643, after its abstract and descriptions (the details are our reading).
The teacher is the moving average of the student's weights, and sees the rows with another dropout. With
h = tanh(logit) of the student and D_ij = 1/4 ||h_i - h_j||^2, which is in bits, and D' the teacher's:

    pair         = mean over pairs of two different labeled rows, and answered ones, of log(1 + e^t_ij) - s_ij t_ij,
                   t_ij = 1/2 h_i.h_j
    quantization = 1/K mean_i ||h_i - sign h_i||^2
    consistency  = 1/K^2 mean_ij (D_ij - D'_ij)^2, over all pairs, no gradient through D'
    total        = pair_weight pair + quantization_weight quantization + w(t) consistency_weight consistency

w(t) = exp(-5 (1 - t / ramp_steps)^2) until step ramp_steps, then 1 (the ramp of mean teachers, Tarvainen and
Valpola 2017). After each step teacher = teacher_decay teacher + (1 - teacher_decay) student; batch statistics are
copied. The hasher is the student.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from distindex.hashing import objectives, pairs
from distindex.hashing.base import Method, Problem
from distindex.hashing.batch import Batch
from distindex.hashing.distributed import gather_rows
from distindex.hashing.noise import key_of
from distindex.method_config import MethodConfig


class PTS3H(Method):
    """Student, teacher and loss of PTS3H."""

    needs_labels = True
    reads_pairs = True

    def __init__(self, problem: Problem, config: MethodConfig) -> None:
        super().__init__(problem, config)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.step: Tensor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms pair, quantization, consistency and total."""
        code_BK = torch.tanh(self.encoder.logits(self.hidden(batch)))
        teacher_BK = self._taught(batch)
        bits = code_BK.shape[1]
        known = pairs.known_pairs(batch)
        pair_BG = pairs.log_likelihood(code_BK, known.similar_BG) * known.known_BG
        distance_BG = pairs.squared_distances(code_BK, gather_rows(code_BK, batch.global_rows)) / 4
        teacher_BG = pairs.squared_distances(teacher_BK, gather_rows(teacher_BK, batch.global_rows)) / 4
        quantization_B = ((code_BK.abs() - 1) ** 2).mean(1)
        terms = {
            "pair": pairs.mean_over_pairs(pair_BG, known.known),
            "quantization": objectives.mean_over_global_batch(quantization_B, batch.global_rows),
            "consistency": pairs.mean_over_pairs(((distance_BG - teacher_BG) / bits) ** 2, batch.global_rows**2),
        }
        weights = self.weights
        terms["total"] = (
            weights.pair_weight * terms["pair"]
            + weights.quantization_weight * terms["quantization"]
            + self.ramp() * weights.consistency_weight * terms["consistency"]
        )
        return terms

    def ramp(self) -> float:
        """`w(t)`, the share of its weight that the consistency has at this step."""
        done = min(1.0, int(self.step) / max(1, self.config.ramp_steps))
        return math.exp(-5 * (1 - done) ** 2)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher towards the student."""
        for old, new in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            old.lerp_(new, 1 - self.config.teacher_decay)
        for old, new in zip(self.teacher.buffers(), self.encoder.buffers(), strict=True):
            old.copy_(new)
        self.step += 1

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Tensor:
        """The teacher's codes, with noise of its own."""
        key = key_of(batch.key, 400)
        return torch.tanh(self.teacher.logits(self.teacher.hidden(self.seen(batch, key), key, batch.row_B)))
