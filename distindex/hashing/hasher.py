"""The Hasher: features + encoder, saved as one self-contained directory without any pickle."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.torch
import torch

import distindex
from distindex import codes
from distindex.codes import CodeArray
from distindex.config import check_bits
from distindex.corpus.features import Features
from distindex.errors import DamagedError, InputError
from distindex.hashing.batch import rows_of
from distindex.hashing.convolution import ImageInput, convolutions_of, forward_network
from distindex.hashing.description import FORMAT_VERSION, read_description
from distindex.settings import fingerprint
from distindex.storage import Storage, sha256_of

_WEIGHTS = "weights.safetensors"

Rows: TypeAlias = pa.Table | pa.RecordBatch | pa.Array | pa.ChunkedArray


@dataclasses.dataclass
class Hasher:
    """Turns rows into codes: `features` make the input, the exported network its K logits, their signs the bits.

    Attributes:
        method: the name of the method that made it, such as `ssb-vae` or `lsh`.
        bits: code length K.
        feature_column: the column that `encode` reads from a table.
        features: the fitted feature recipe.
        tables: weights `[inputs, outputs]` and biases of the ReLU network, layer by layer; for images first the
            weights `[out, in, 3, 3]` and biases of its convolutions.
        label_names: the labels that training knew, sorted; empty without labels.
        metadata: training config, data fingerprint, metrics: for people, not read by `encode`.
    """

    method: str
    bits: int
    feature_column: str
    features: Features
    tables: Sequence[tuple[torch.Tensor, torch.Tensor]]
    label_names: Sequence[str] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_bits(self.bits)
        image, count = ImageInput.of(self.features), convolutions_of(self.tables)
        expected = self.features.width
        if count and image is not None:
            expected = math.prod(image.halved(count)) * len(self.tables[count - 1][1])
        width, bits = self.tables[count][0].shape[0], self.tables[-1][0].shape[1]
        if width != expected or bits != self.bits or (count and image is None):
            raise InputError(
                f"hasher: a network from {width} features to {bits} bits does not fit "
                f"{expected} features and {self.bits} bits"
            )

    @torch.inference_mode()
    def logits(self, x_NV: Any, batch_rows: int = 4096) -> npt.NDArray[np.float32]:
        """The encoder's output `logit_NK` for feature rows `x_NV` as `features.transform` gives them."""
        image = ImageInput.of(self.features)
        logit_NK = np.empty((x_NV.shape[0], self.bits), np.float32)
        for start in range(0, len(logit_NK), batch_rows):
            rows = rows_of(x_NV[start : start + batch_rows]).to(self.tables[0][0].device)
            logit_NK[start : start + batch_rows] = forward_network(self.tables, image, rows).cpu().numpy()
        return logit_NK

    def to(self, device: torch.device) -> None:
        """Run the network on this device from now on."""
        self.tables = [(table.to(device), bias.to(device)) for table, bias in self.tables]

    def encode(self, rows: Rows, checked: bool = False) -> CodeArray:
        """The codes `code_NC` of a table's feature column, or of such a column itself: the signs of its logits.

        Args:
            rows: the table or column.
            checked: it is known to have no bad row (`features.bad_rows`), and is not looked through again.

        Raises:
            InputError: as `logits_of`.
        """
        return codes.pack(self.logits_of(rows, checked) > 0)

    def logits_of(self, rows: Rows, checked: bool = False) -> npt.NDArray[np.float32]:
        """The logits `logit_NK` of a table's feature column, or of such a column itself.

        Args:
            rows: the table or column.
            checked: as for `encode`.

        Raises:
            InputError: the column is missing, or a row is null, of another width, NaN or infinite.
        """
        column: Any = rows
        if isinstance(rows, pa.Table | pa.RecordBatch):
            if self.feature_column not in rows.schema.names:
                raise InputError(
                    f'no column "{self.feature_column}" to encode; the columns are {", ".join(rows.schema.names)}'
                )
            column = rows[self.feature_column]
        bad = [] if checked else self.features.bad_rows(column)
        if bad:
            raise InputError(f'row {bad[0][0]}: column "{self.feature_column}" {bad[0][1]}')
        return self.logits(self.features.transform(column, checked=True))

    # Saving and loading

    def save(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """Write the directory: weights and feature state first, `hasher.json` last. Sets `fingerprint`."""
        storage = Storage(uri, storage_options)
        tensors = {}
        count = convolutions_of(self.tables)
        for name, (table, bias) in zip(_layer_names(count, len(self.tables) - count), self.tables, strict=True):
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = table.contiguous(), bias.contiguous()
        storage.write_bytes(_WEIGHTS, safetensors.torch.save(tensors))
        features = self.features.save(storage)
        files = [_WEIGHTS, *features.get("files", [])]
        hashes = {name: hashlib.sha256(storage.read_bytes(name)).hexdigest() for name in files}
        layers = self.tables[count:]
        network = {"layers": [layers[0][0].shape[0], *(len(bias) for _, bias in layers)], "activation": "relu"}
        if count:
            network["convolutions"] = [len(bias) for _, bias in self.tables[:count]]
        identity = {
            "format_version": FORMAT_VERSION,
            "kind": "hasher",
            "method": self.method,
            "bits": self.bits,
            "feature_column": self.feature_column,
            "features": features,
            "network": network,
            "label_names": list(self.label_names),
            "files": hashes,
        }
        self.fingerprint = fingerprint(identity)
        description = {
            **identity,
            "fingerprint": self.fingerprint,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "distindex": distindex.__version__,
            "metadata": dict(self.metadata),
        }
        storage.write_json("hasher.json", description)

    @classmethod
    def load(cls, uri: str, storage_options: Mapping[str, Any] | None = None) -> Hasher:
        """Load a saved hasher; nothing in the directory is executed.

        Raises:
            NotFoundError: there is no hasher at this URI.
            FormatError: it was written in a format that this release does not know.
            DamagedError: a file does not have its recorded sha256.
        """
        storage = Storage(uri, storage_options)
        description = read_description(storage)
        for name, expected in description["files"].items():
            with storage.open_input(name) as stream:
                if sha256_of(stream) != expected:
                    raise DamagedError(
                        f"{storage.full_uri(name)}: sha256 differs from hasher.json; the file is damaged"
                    )
        tensors = safetensors.torch.load(storage.read_bytes(_WEIGHTS))
        network = description["network"]
        names = _layer_names(len(network.get("convolutions", [])), len(network["layers"]) - 1)
        return cls(
            method=description["method"],
            bits=description["bits"],
            feature_column=description["feature_column"],
            features=Features.load(storage, description["features"]),
            tables=[(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names],
            label_names=tuple(description["label_names"]),
            metadata=description["metadata"],
            fingerprint=description["fingerprint"],
        )


def _layer_names(convolutions: int, layers: int) -> list[str]:
    return [*(f"convolution.{depth}" for depth in range(convolutions)), *(str(depth) for depth in range(layers))]
