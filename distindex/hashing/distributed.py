"""What makes W workers with B/W rows each compute the gradient of one worker with B rows.

Pair losses and batch statistics run over the global batch. Both collectives here are differentiable; with
gradients averaged over the workers (as DistributedDataParallel does) and each worker's loss scaled by
`W / global_rows`, the result is the single-process gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, counts: list[int]) -> Tensor:  # type: ignore[override]
        rank = dist.get_rank()
        ctx.start, ctx.rows = sum(counts[:rank]), len(local)
        most = max(counts)
        padded = F.pad(local, (0, 0, 0, most - len(local))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        # Every worker's loss depends on our rows: their gradients add up.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.rows], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:  # type: ignore[override]
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def gather_rows(local_BX: Tensor) -> Tensor:
    """The rows of all workers in rank order, differentiable; workers may hold different numbers of rows."""
    if world_size() == 1:
        return local_BX
    mine = torch.tensor([len(local_BX)], device=local_BX.device)
    counts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    return _Gather.apply(local_BX, [int(count) for count in counts])  # type: ignore[no-any-return]


def sum_over_workers(local: Tensor) -> Tensor:
    """The sum over all workers, differentiable."""
    return local if world_size() == 1 else _Sum.apply(local)  # type: ignore[no-any-return]


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalization with the statistics of the global batch, on CPU as on GPU.

    torch's SyncBatchNorm runs on GPUs only. The default of momentum and eps are those of the reference (Keras).
    """

    def __init__(self, units: int, momentum: float = 0.01) -> None:
        super().__init__(units, eps=1e-3, momentum=momentum)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift `[U]` that normalization amounts to outside training."""
        scale_U = self.weight * torch.rsqrt(self.running_var + self.eps)  # type: ignore[operator]
        return scale_U, self.bias - self.running_mean * scale_U  # type: ignore[operator]

    def forward(self, x_BU: Tensor) -> Tensor:  # type: ignore[override]
        if not self.training or world_size() == 1:
            return super().forward(x_BU)
        ones = x_BU.new_ones(len(x_BU), 1)
        sums = sum_over_workers(torch.cat([ones, x_BU], dim=1).sum(0))
        rows, mean_U = sums[0], sums[1:] / sums[0]
        variance_U = sum_over_workers(((x_BU - mean_U) ** 2).sum(0)) / rows
        with torch.no_grad():
            share = self.momentum or 0.0
            unbiased_U = variance_U * rows / (rows - 1)
            self.running_mean.lerp_(mean_U, share)  # type: ignore[union-attr]
            self.running_var.lerp_(unbiased_U, share)  # type: ignore[union-attr]
            self.num_batches_tracked += 1  # type: ignore[operator]
        return (x_BU - mean_U) * torch.rsqrt(variance_U + self.eps) * self.weight + self.bias
