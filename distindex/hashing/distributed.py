"""What makes W workers with B/W rows each compute the gradient of one worker with B rows.

Pair losses and batch statistics run over the global batch. Both collectives here are differentiable; with
gradients averaged over the workers (`average_gradients`) and each worker's loss scaled by
`W / global_rows`, the result is the single-process gradient.

Gradients are averaged here and not by DistributedDataParallel, which knows sparse gradients of torch's own
embedding layers only, and not with NCCL.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def union_over_workers(value_M: Tensor) -> Tensor:
    """The distinct values that occur on any worker, ascending."""
    mine = torch.unique(value_M)
    return mine if world_size() == 1 else torch.unique(gather_rows(mine[:, None])[:, 0])


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the workers; one collective for all of them.

    A sparse gradient must hold the same rows on every worker. A parameter that has no gradient on this worker
    must have none on any.
    """
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    values = [g._values() if g.is_sparse else g for g in gradients]
    flat = torch.cat([value.reshape(-1) for value in values])
    dist.all_reduce(flat)
    flat /= world_size()
    for value, mean in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(mean.view_as(value))


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalization with the statistics of the global batch, on CPU as on GPU.

    torch's SyncBatchNorm runs on GPUs only. The default of momentum and eps are those of the reference (Keras).
    """

    def __init__(self, units: int, momentum: float = 0.01) -> None:
        super().__init__(units, eps=1e-3, momentum=momentum)
        # Of use only where there is no momentum.
        self.num_batches_tracked = None

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
        return (x_BU - mean_U) * torch.rsqrt(variance_U + self.eps) * self.weight + self.bias
