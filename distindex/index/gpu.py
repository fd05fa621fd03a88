"""The exact search structure on a GPU: faiss GpuIndexBinaryFlat over the distinct codes.

faiss on a GPU does not say in which order it gives codes at one distance. So more than k are asked for, until the
distance changes after the k-th; queries with too many ties go to the CPU, as do radii and large k.
"""

# pyright: reportAttributeAccessIssue=false
# (faiss makes its Python classes when it is imported)

from __future__ import annotations

from typing import Any, BinaryIO

import faiss
import numpy as np

from distindex.codes import CodeArray
from distindex.errors import InputError
from distindex.index.flat import Flat
from distindex.index.structure import Neighbors, pad

# faiss's k-selection on a GPU ends here.
_MOST_ON_GPU = 2048


def check_gpu() -> None:
    """Refuse to go on where faiss cannot reach a GPU.

    Raises:
        InputError: the CPU build of faiss, or no device.
    """
    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        raise InputError("kind: gpu-flat needs the GPU build of faiss; install the extra gpu, or use flat")
    if not faiss.get_num_gpus():
        raise InputError("kind: gpu-flat needs a GPU, and faiss finds none on this machine; use flat")


class GpuFlat:
    """U distinct codes in byte order, searched exactly on the first GPU.

    Args:
        flat: the codes.

    Raises:
        InputError: faiss cannot reach a GPU.
    """

    def __init__(self, flat: Flat) -> None:
        check_gpu()
        self.bits = flat.bits
        self.code_UC: CodeArray = flat.code_UC
        self._flat = flat
        self._resources: Any = faiss.StandardGpuResources()
        self._index: Any = faiss.GpuIndexBinaryFlat(self._resources, flat.faiss_index)

    def __len__(self) -> int:
        return len(self._flat)

    def write(self, stream: BinaryIO) -> None:
        self._flat.write(stream)

    def knn(self, code_QC: CodeArray, k: int) -> Neighbors:
        """The `min(k, U)` nearest codes of each query."""
        k = min(k, len(self))
        asked = min(2 * k + 64, len(self), _MOST_ON_GPU)
        if not k or not len(code_QC) or asked < k:
            return self._flat.knn(code_QC, k)
        distance_QA, position_QA = self._index.search(pad(code_QC), asked)
        order_QA = np.lexsort((position_QA, distance_QA), axis=1)[:, :k]
        complete_Q = (asked == len(self)) | (distance_QA.max(axis=1) > np.sort(distance_QA, axis=1)[:, k - 1])
        distance_Qk = np.take_along_axis(distance_QA, order_QA, axis=1).astype(np.int32)
        position_Qk = np.take_along_axis(position_QA, order_QA, axis=1).astype(np.int64)
        tied = np.flatnonzero(~complete_Q)
        if len(tied):
            exact = self._flat.knn(code_QC[tied], k)
            distance_Qk[tied] = exact.distance_M.reshape(-1, k)
            position_Qk[tied] = exact.position_M.reshape(-1, k)
        return Neighbors(np.arange(len(code_QC) + 1) * k, distance_Qk.ravel(), position_Qk.ravel())

    def within(self, code_QC: CodeArray, radius: int) -> Neighbors:
        """All codes at most `radius` bits away from each query."""
        return self._flat.within(code_QC, radius)
