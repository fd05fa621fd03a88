"""W workers with shares of a global batch give the gradient, loss and statistics of one worker with all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distindex.config import MethodConfig
from distindex.hashing.batch import Batch, Rows, SparseRows, rows_of
from distindex.hashing.ssbvae import SSBVAE
from distindex.training.data import global_batches, share_of

WIDTH, BITS, CLASSES = 40, 16, 3
CASES = [
    # name, sparse input, several labels a row, rows of the global batch
    ("text", True, False, 24),
    ("text-ragged", True, False, 13),
    ("dense-multi-label", False, True, 24),
    ("dense-fewer-rows-than-workers", False, False, 3),
]


def _batch(sparse: bool, multi: bool, rows: int, start: int, stop: int) -> Batch:
    random = np.random.default_rng(rows)
    x_GV: Any = random.random((rows, WIDTH)).astype(np.float32)
    if sparse:
        x_GV = scipy.sparse.csr_matrix(x_GV * (random.random((rows, WIDTH)) < 0.3))
        target_GV = x_GV / np.maximum(x_GV.sum(1), 1e-9)
        target_GV = scipy.sparse.csr_matrix(target_GV.astype(np.float32))
    else:
        target_GV = x_GV
    label_GC = np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, rows)]
    if multi:
        label_GC[:, 0] = 1
    label_GC[rows // 2 :] = 0
    return Batch(
        _double(rows_of(x_GV[start:stop])),
        _double(rows_of(target_GV[start:stop])),
        torch.from_numpy(label_GC[start:stop]).double(),
        torch.arange(start, stop),
        rows,
        key=1234,
    )


def _double(rows: Rows) -> Rows:
    # In double precision, so that a wrong factor cannot hide behind rounding.
    if isinstance(rows, SparseRows):
        return dataclasses.replace(rows, value_M=rows.value_M.double())
    return rows.double()


def _model(sparse: bool, multi: bool) -> SSBVAE:
    torch.manual_seed(3)
    config = MethodConfig(hidden=[20, 12], class_weight=5.0, pair_weight=3.0, dropout=0.2, input_dropout=0.2)
    return SSBVAE(WIDTH, BITS, CLASSES, multi, sparse, config).double()


def _result(model: SSBVAE, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {f"buffer {name}": b for name, b in model.named_buffers()}
    return {**gradients, **buffers, **{f"term {name}": t.detach() for name, t in terms.items()}}


def _worker(rank: int, workers: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=workers)
    found = {}
    for name, sparse, multi, rows in CASES:
        model = _model(sparse, multi)
        parallel = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        terms = parallel(_batch(sparse, multi, rows, *share_of(rank, workers, rows)))
        terms["total"].backward()
        for value in terms.values():
            dist.all_reduce(value.detach())
        result = _result(model, {key: value.detach() / workers for key, value in terms.items()})
        found |= {f"{name}: {key}": value for key, value in result.items()}
    if rank == 0:
        torch.save(found, f"{directory}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 4])
def test_gradients_equal_a_single_worker(workers: int, tmp_path: Path) -> None:
    mp.spawn(_worker, (workers, str(tmp_path)), nprocs=workers)  # pyright: ignore[reportPrivateImportUsage]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, sparse, multi, rows in CASES:
        model = _model(sparse, multi)
        terms = model(_batch(sparse, multi, rows, 0, rows))
        terms["total"].backward()
        expected = _result(model, terms)
        assert {key for key in found if key.startswith(f"{name}:")} == {f"{name}: {key}" for key in expected}
        for key, value in expected.items():
            np.testing.assert_allclose(found[f"{name}: {key}"], value, rtol=1e-7, atol=1e-9, err_msg=f"{name}: {key}")


@pytest.mark.parametrize(("rows", "batch_size"), [(100, 10), (101, 10), (7, 10), (95, 10), (2, 10)])
def test_every_row_stands_in_one_global_batch_and_one_share(rows: int, batch_size: int) -> None:
    for workers in (1, 2, 3, 4):
        seen: list[int] = []
        for _, row_G in global_batches(rows, batch_size, seed=5, epoch=2):
            assert len(row_G) >= min(2, rows)
            shares = [row_G[slice(*share_of(rank, workers, len(row_G)))] for rank in range(workers)]
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            seen += [int(row) for share in shares for row in share]
        assert sorted(seen) == list(range(rows))


def test_batches_change_with_the_epoch_and_repeat_with_the_seed() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        return [int(row) for _, batch in global_batches(50, 8, seed, epoch) for row in batch]

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)
    keys = [key for epoch in range(3) for key, _ in global_batches(50, 8, 1, epoch)]
    assert len(set(keys)) == len(keys)
