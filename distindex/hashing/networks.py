"""Networks that the methods share: the pre-encoder with a sparse-capable first layer, and the export of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distindex.hashing import noise
from distindex.hashing.batch import Rows, SparseRows
from distindex.hashing.distributed import GlobalBatchNorm


class InputLayer(nn.Module):
    """A linear layer that takes dense or sparse rows; a sparse row costs its entries, not its width.

    In training on sparse rows the gradient of the table is sparse too, if that is asked for: the rows of the words
    that occur in the global batch, the same ones on every worker.
    """

    def __init__(self, width: int, units: int, sparse_gradient: bool = True) -> None:
        super().__init__()
        self.sparse_gradient = sparse_gradient
        # Stored as [V, units], so that a sparse row sums whole rows of the table.
        self.table_VU = nn.Parameter(torch.empty(width, units))
        self.bias_U = nn.Parameter(torch.zeros(units))
        nn.init.xavier_uniform_(self.table_VU)

    def forward(self, x_BV: Rows) -> Tensor:
        wanted = self.sparse_gradient and self.training and torch.is_grad_enabled()
        if not isinstance(x_BV, SparseRows) or not wanted:
            return affine(x_BV, self.table_VU, self.bias_U)
        word_A, occurring_BA = x_BV.occurring()
        if self.table_VU.device.type == "cpu":
            return _SumRows.apply(self.table_VU, word_A, x_BV, occurring_BA) + self.bias_U  # type: ignore[no-any-return]
        return affine(occurring_BA, select_rows(self.table_VU, word_A), self.bias_U)


class _SumRows(torch.autograd.Function):
    """`x W` with the sparse gradient that `select_rows` gives, without a copy of the rows that occur.

    With the gradient summed by SciPy the layer takes half the time of torch's on a CPU.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, table_VU: Tensor, word_A: Tensor, x_BV: SparseRows, occurring_BA: SparseRows
    ) -> Tensor:
        ctx.word_A, ctx.occurring_BA, ctx.shape = word_A, occurring_BA, table_VU.shape
        return sum_rows(x_BV, table_VU)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BU: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        rows: SparseRows = ctx.occurring_BA
        entries = (rows.value_M.numpy(), rows.column_M.numpy(), rows.offset_B1.numpy())
        x_AB = scipy.sparse.csc_array(entries, shape=(rows.width, len(rows)))
        gradient_AU = torch.from_numpy(x_AB @ gradient_BU.numpy())
        return _rows_gradient(ctx.word_A, gradient_AU, ctx.shape), None, None, None


class _SelectRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VU: Tensor, row_A: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(row_A)
        ctx.shape = table_VU.shape
        return table_VU.index_select(0, row_A)

    @staticmethod
    def backward(ctx: Any, gradient_AU: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (row_A,) = ctx.saved_tensors
        return _rows_gradient(row_A, gradient_AU, ctx.shape), None


def _rows_gradient(row_A: Tensor, gradient_AU: Tensor, shape: torch.Size) -> Tensor:
    return torch.sparse_coo_tensor(row_A[None], gradient_AU, shape, is_coalesced=True, check_invariants=False)


def select_rows(table_VU: Tensor, row_A: Tensor) -> Tensor:
    """`table_VU[row_A]` for ascending, distinct rows; the table's gradient is sparse."""
    return _SelectRows.apply(table_VU, row_A)  # type: ignore[no-any-return]


def affine(x_BV: Rows, table_VU: Tensor, bias_U: Tensor) -> Tensor:
    """`x W + b` for dense or sparse rows."""
    if isinstance(x_BV, SparseRows):
        return sum_rows(x_BV, table_VU) + bias_U
    return torch.addmm(bias_U, x_BV, table_VU)


def sum_rows(x_BV: SparseRows, table_VU: Tensor) -> Tensor:
    """`x W`: of each row the sum of the table's rows that it has entries for, times these."""
    return F.embedding_bag(
        x_BV.column_M,
        table_VU,
        x_BV.offset_B1,
        mode="sum",
        per_sample_weights=x_BV.value_M,
        include_last_offset=True,
    )


def drop_inputs(x_BV: Rows, share: float, key: int, row_B: Tensor) -> Rows:
    """Hide a share of each row's entries: words of a text, dimensions of a vector."""
    if share == 0:
        return x_BV
    if isinstance(x_BV, SparseRows):
        keep_M = noise.uniform_at(key, row_B[x_BV.row_M], x_BV.column_M) >= share
        return dataclasses.replace(x_BV, value_M=x_BV.value_M * keep_M / (1 - share))
    return noise.dropout(x_BV, share, key, row_B)


def glorot_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Keras' initial values, as the reference has them."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """[Linear -> ReLU -> BatchNorm -> dropout] for each hidden width, then K logits.

    Source: SSB-VAE reference code (amacaluso/SSB-VAE): normalization after the ReLU; dropout is ours.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], bits: int, dropout: float, sparse_gradient: bool = True
    ) -> None:
        super().__init__()
        sizes = [width, *hidden, bits]
        self.bits, self.dropout = bits, dropout
        self.first = InputLayer(sizes[0], sizes[1], sparse_gradient)
        self.layers = nn.ModuleList(glorot_linear(a, b) for a, b in itertools.pairwise(sizes[1:]))
        self.norms = nn.ModuleList(GlobalBatchNorm(units) for units in hidden)

    def hidden(self, x_BV: Rows, key: int, row_B: Tensor) -> Tensor:
        """The last hidden layer `hidden_BU`."""
        out = self.first(x_BV)
        for depth, norm in enumerate(self.norms):
            out = norm(F.relu(out))
            if self.training:
                out = noise.dropout(out, self.dropout, noise.key_of(key, depth), row_B)
            if depth < len(self.layers) - 1:
                out = self.layers[depth](out)
        return out

    def logits(self, hidden_BU: Tensor) -> Tensor:
        """The code's logits `logit_BK` from the last hidden layer."""
        return self.layers[-1](hidden_BU)

    @torch.no_grad()
    def export(self) -> list[tuple[Tensor, Tensor]]:
        """Weights `[inputs, outputs]` and biases of a plain ReLU network that gives the same logits.

        Batch normalization in inference is an affine map, so it goes into the layer that follows it.
        """
        tables = [(self.first.table_VU.clone(), self.first.bias_U.clone())]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            scale_U, shift_U = cast(GlobalBatchNorm, norm).inference_affine()
            layer = cast(nn.Linear, layer)
            table = layer.weight.T
            tables.append(((scale_U[:, None] * table).contiguous(), layer.bias + shift_U @ table))
        return tables


def forward_exported(tables: Sequence[tuple[Tensor, Tensor]], x_BV: Rows) -> Tensor:
    """Logits `logit_BK` of an exported network; ReLU between the layers."""
    out = affine(x_BV, *tables[0])
    for table, bias in tables[1:]:
        out = torch.addmm(bias, F.relu(out), table)
    return out
