"""What makes W workers with B/W rows each compute the gradient of one worker with B rows.

Pair losses and batch statistics run over the global batch. Both collectives here are differentiable; with
gradients averaged over the workers (`average_gradients`) and each worker's loss scaled by
`W / global_rows`, the result is the single-process gradient.

Gradients are averaged here and not by DistributedDataParallel, which knows sparse gradients of torch's own
embedding layers only, and not with NCCL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share_of(rank: int, workers: int, rows: int) -> tuple[int, int]:
    """Which of the `rows` of a global batch belong to a worker; shares differ by one row at most."""
    return rank * rows // workers, (rank + 1) * rows // workers


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, global_rows: int) -> Tensor:  # type: ignore[override]
        bounds = [share_of(rank, world_size(), global_rows) for rank in range(world_size())]
        ctx.begin, ctx.end = bounds[dist.get_rank()]
        most = max(end - begin for begin, end in bounds)
        padded = F.pad(local, (0, 0, 0, most - len(local))).contiguous()
        parts = [torch.empty_like(padded) for _ in bounds]
        dist.all_gather(parts, padded)
        return torch.cat([part[: end - begin] for part, (begin, end) in zip(parts, bounds, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        # Every worker's loss depends on our rows: their gradients add up.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.begin : ctx.end], None


def gather_rows(local_BX: Tensor, global_rows: int) -> Tensor:
    """The rows of all workers in rank order, differentiable.

    Args:
        local_BX: this worker's share, as `share_of` has it.
        global_rows: rows of the global batch.
    """
    return local_BX if world_size() == 1 else _Gather.apply(local_BX, global_rows)  # type: ignore[no-any-return]


def gather_together(locals_BX: Sequence[Tensor], global_rows: int) -> Sequence[Tensor]:
    """As `gather_rows` of each, in one message."""
    if world_size() == 1:
        return locals_BX
    return gather_rows(torch.cat(list(locals_BX), dim=1), global_rows).split([x.shape[1] for x in locals_BX], dim=1)


def sum_over_workers(local: Tensor) -> Tensor:
    """The sum over all workers; not differentiable."""
    if world_size() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total


def union_over_workers(value_M: Tensor, values: int) -> Tensor:
    """The distinct values that occur on any worker, ascending; they lie in [0, values)."""
    # Marks, not a sort; and one collective of a fixed size, where lists of their own lengths would need another one.
    occurs = torch.zeros(values, dtype=torch.uint8, device=value_M.device)
    occurs[value_M] = 1
    if world_size() > 1:
        dist.all_reduce(occurs, dist.ReduceOp.MAX)
    return occurs.nonzero()[:, 0]


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


class _NormalizeByBatch(torch.autograd.Function):
    """`(x - mean) / sqrt(variance + eps)` by the global batch: one collective there and one back."""

    @staticmethod
    def forward(ctx: Any, x_BU: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        mean_U = x_BU.sum(0) / max(1, len(x_BU))
        own = torch.stack([torch.full_like(mean_U, len(x_BU)), mean_U, ((x_BU - mean_U) ** 2).sum(0)])
        parts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(parts, own)
        rows_WU, mean_WU, squares_WU = torch.stack(parts, dim=1)
        # Means and squares about them are joined as in Chan, Golub, LeVeque (1983): nothing cancels.
        rows_U = rows_WU.sum(0)
        mean_U = (rows_WU * mean_WU).sum(0) / rows_U
        variance_U = (squares_WU + rows_WU * (mean_WU - mean_U) ** 2).sum(0) / rows_U
        scale_U = torch.rsqrt(variance_U + eps)
        out_BU = (x_BU - mean_U) * scale_U
        ctx.save_for_backward(out_BU, scale_U, rows_U)
        ctx.mark_non_differentiable(mean_U, variance_U, rows_U)
        return out_BU, mean_U, variance_U, rows_U

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BU: Tensor, *_: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        out_BU, scale_U, rows_U = ctx.saved_tensors
        # Every worker's loss depends on our rows through the mean and the variance.
        sums = torch.stack([gradient_BU.sum(0), (gradient_BU * out_BU).sum(0)])
        dist.all_reduce(sums)
        mean_U, slope_U = sums / rows_U
        return scale_U * (gradient_BU - mean_U - out_BU * slope_U), None


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
        out_BU, mean_U, variance_U, rows_U = _NormalizeByBatch.apply(x_BU, self.eps)
        with torch.no_grad():
            share = self.momentum or 0.0
            self.running_mean.lerp_(mean_U, share)  # type: ignore[union-attr]
            self.running_var.lerp_(variance_U * rows_U / (rows_U - 1), share)  # type: ignore[union-attr]
        return out_BU * self.weight + self.bias
