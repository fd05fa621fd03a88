"""W workers with shares of a global batch give the gradient, loss and statistics of one worker with all of it."""

from __future__ import annotations

import dataclasses
import multiprocessing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distindex.config import MethodConfig
from distindex.hashing.base import Method
from distindex.hashing.batch import AnsweredPairs, Batch, Rows, SparseRows, rows_of
from distindex.hashing.convolution import ImageInput
from distindex.hashing.distributed import average_gradients, share_of
from distindex.hashing.methods import METHODS, build_method, reads_pairs
from distindex.training.data import global_batches

WIDTH, BITS, CLASSES = 40, 16, 3
# name, sparse input, several labels a row, rows of the global batch
SHAPES = [
    ("text", True, False, 24),
    ("text-ragged", True, False, 13),
    ("dense-multi-label", False, True, 24),
    ("dense-fewer-rows-than-workers", False, False, 3),
    ("images", False, False, 13),
]
# 5 x 8 pixels of one channel.
IMAGE = ImageInput(5, 8, (0.4,), (0.3,))


_AS_REFERENCE = " as the reference"


class Case(NamedTuple):
    name: str
    config: MethodConfig
    sparse: bool
    multi: bool
    rows: int
    images: bool
    answered: bool = False


def _configs() -> dict[str, MethodConfig]:
    """Every method, and the variants that take another path through the global batch."""
    common: dict[str, Any] = {"hidden": [20, 12]}
    named: dict[str, Any] = {name: {"name": name, "dropout": 0.2, "input_dropout": 0.2} for name in METHODS}
    named["ssb-vae over all words"] = {**named["ssb-vae"], "vocabulary": "all"}
    named["ssdh in code space"] = {**named["ssdh"], "graph": "codes", "graph_weight": 2.0}
    named["ssdh"]["graph_weight"] = 2.0
    named["pts3h"] |= {"ramp_steps": 2, "teacher_decay": 0.5}
    for name in ("ssb-vae", "phs-gs", "vdsh-s"):
        named[f"{name}{_AS_REFERENCE}"] = {"name": name, "reference": True}
    return {name: MethodConfig(**common, **settings) for name, settings in named.items()}


CASES = [
    Case(f"{method}, {name}", config, sparse, multi, rows, name == "images")
    for method, config in _configs().items()
    for name, sparse, multi, rows in SHAPES[method != "ssb-vae" :]
    if name != "images" or not method.endswith(_AS_REFERENCE)
] + [
    Case(f"{method}, {name} with answers", config, sparse, multi, rows, False, answered=True)
    for method, config in _configs().items()
    for name, sparse, multi, rows in (SHAPES[1], SHAPES[3])
    if reads_pairs(config.name)
]
STEPS = 2


def _batch(case: Case, start: int, stop: int, key: int) -> Batch:
    _, _, sparse, multi, rows, images, answered = case
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
    if images:
        x_GV = target_GV = (255 * x_GV).astype(np.uint8)
    return Batch(
        _double(rows_of(x_GV[start:stop])),
        _double(rows_of(target_GV[start:stop])),
        torch.from_numpy(label_GC[start:stop]).double(),
        torch.arange(start, stop),
        rows,
        key,
        _answered(rows) if answered else None,
    )


def _answered(rows: int) -> AnsweredPairs:
    """Pairs within a worker's share and across shares; the first half of the rows is labeled, and no pair is."""
    left, right = torch.tensor([[0, rows - 1], [rows - 2, rows - 1], [rows // 2, 0]]).T
    return AnsweredPairs(left, right, torch.tensor([True, False, True]))


def _double(rows: Rows) -> Rows:
    # In double precision, so that a wrong factor cannot hide behind rounding.
    if isinstance(rows, SparseRows):
        return dataclasses.replace(rows, value_M=rows.value_M.double())
    return rows.double()


def _model(case: Case) -> Method:
    torch.manual_seed(3)
    config, image = case.config, None
    if case.images:
        config, image = dataclasses.replace(config, convolutions=[4, 6], flip=True, shift=2), IMAGE
    return build_method(config, WIDTH, BITS, CLASSES, case.multi, case.sparse, image).double()


def _run(case: Case, rank: int, workers: int) -> dict[str, torch.Tensor]:
    """Two steps, so that a teacher differs from its student; everything that the second one gives."""
    model = _model(case)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    terms = {}
    for step in range(STEPS):
        batch = _batch(case, *share_of(rank, workers, case.rows), key=1234 + step)
        terms = model(batch)
        optimizer.zero_grad()
        terms["total"].backward()
        average_gradients(model.parameters())
        if step < STEPS - 1:
            optimizer.step()
            model.after_step()
    gradients = {f"gradient {name}": p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}
    buffers = {f"buffer {name}": b for name, b in model.named_buffers()}
    means = {f"term {name}": value.detach().clone() for name, value in terms.items()}
    for value in means.values():
        if workers > 1:
            dist.all_reduce(value)
            value /= workers
    return {**gradients, **buffers, **means}


@cache
def _expected() -> dict[str, dict[str, torch.Tensor]]:
    """What one worker gives, by the case's name."""
    return {case.name: _run(case, 0, 1) for case in CASES}


def _worker(rank: int, workers: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=workers)
    found = {f"{case.name}: {key}": value for case in CASES for key, value in _run(case, rank, workers).items()}
    if rank == 0:
        torch.save(found, f"{directory}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_equal_a_single_worker(workers: int, tmp_path: Path) -> None:
    # From a process that has imported this file, and with it torch, once for all workers.
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
    arguments = (workers, str(tmp_path))
    mp.start_processes(_worker, arguments, workers, start_method="forkserver")  # pyright: ignore[reportPrivateImportUsage]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for case in CASES:
        expected = _expected()[case.name]
        assert {key for key in found if key.startswith(f"{case.name}: ")} == {
            f"{case.name}: {key}" for key in expected
        }
        for key, value in expected.items():
            name = f"{case.name}: {key}"
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


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


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("rows", "labeled", "batch_size"), [(200, 20, 20), (61, 5, 10), (100, 90, 10), (9, 1, 50)])
def test_two_streams_keep_the_share_of_labeled_rows(
    rows: int, labeled: int, batch_size: int, fraction: float
) -> None:
    labeled_N = np.zeros(rows, bool)
    labeled_N[np.random.default_rng(1).permutation(rows)[:labeled]] = True

    def batches(epoch: int) -> list[np.ndarray]:
        made = global_batches(rows, batch_size, 5, epoch, labeled_N, fraction)
        return [row_G for _, row_G in made]

    first = batches(0)
    for row_G in first[:-1]:
        assert len(row_G) == batch_size
        assert labeled_N[row_G].sum() == round(fraction * batch_size)
    last = labeled_N[first[-1]]
    assert 0 < last.sum() < len(last) <= batch_size
    assert abs(last.mean() - fraction) < 1 / min(3, len(last))
    seen = np.concatenate(first)
    assert sorted(seen[~labeled_N[seen]]) == list(np.flatnonzero(~labeled_N))
    counts = np.bincount(seen[labeled_N[seen]], minlength=rows)[labeled_N]
    assert counts.max() - counts.min() <= 1
    assert [list(b) for b in batches(0)] == [list(b) for b in first]
    assert [list(b) for b in batches(1)] != [list(b) for b in first]


def test_a_labeled_fraction_of_one_leaves_the_others_out() -> None:
    labeled_N = np.arange(40) % 4 == 0
    rows = [int(row) for _, row_G in global_batches(40, 4, 0, 0, labeled_N, 1.0) for row in row_G]
    assert sorted(rows) == list(range(0, 40, 4))
