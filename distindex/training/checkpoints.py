"""What a training run leaves behind so that it can go on: its checkpoints, and which is the last whole one."""

from __future__ import annotations

import dataclasses
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distindex.errors import DistindexError, InputError, NotFoundError
from distindex.hashing.base import Method
from distindex.storage import Storage
from distindex.training.optimizer import Optimizer

Tables = list[tuple[Tensor, Tensor]]
RUN = "training"
"""Where in a training's output its state lies."""
# Ray Train's list of the checkpoints of a run, which it writes in place.
_LIST = "checkpoint_manager_snapshot.json"


@dataclasses.dataclass
class Progress:
    """What a resumed run must know besides weights: saved as JSON in each checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_precision: float = -1.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    part: dict[str, Any] | None = None


def save_checkpoint(
    directory: Storage, model: Method, optimizer: Optimizer, progress: Progress, best: Tables
) -> None:
    """Write a checkpoint into an empty directory."""
    with directory.open_output("state.pt") as stream:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    tensors = {f"{depth}.{part}": tensor for depth, pair in enumerate(best) for part, tensor in enumerate(pair)}
    directory.write_bytes("best.safetensors", safetensors.torch.save(tensors))
    directory.write_json("progress.json", dataclasses.asdict(progress))


def load_checkpoint(
    directory: Storage, model: Method, optimizer: Optimizer, device: torch.device
) -> tuple[Progress, Tables]:
    """Give the model and the optimizer the state of a checkpoint; its progress and its best network so far."""
    state = _read_state(directory, device)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return read_checkpoint(directory)


def read_checkpoint(directory: Storage) -> tuple[Progress, Tables]:
    """The progress and the best network so far of a checkpoint directory."""
    progress = Progress(**directory.read_json("progress.json"))
    tensors = safetensors.torch.load(directory.read_bytes("best.safetensors"))
    return progress, [(tensors[f"{depth}.0"], tensors[f"{depth}.1"]) for depth in range(len(tensors) // 2)]


def load_initial(run: Storage, model: Method) -> None:
    """Give a model the weights of another run's last whole checkpoint, where names and shapes are the same.

    Raises:
        NotFoundError: the run has no checkpoint.
    """
    found = next((run.child(name) for name in checkpoint_names(run) if _is_whole(run.child(name))), None)
    if found is None:
        raise NotFoundError(f"initial: {run.uri} has no checkpoint; finish that training, or leave initial out")
    own = model.state_dict()
    weights = _read_state(found, torch.device("cpu"))["model"]
    same = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(same, strict=False)


def checkpoint_names(run: Storage) -> list[str]:
    """The names of a run's checkpoints, the last first."""
    return sorted((name for name in run.names() if name.startswith("checkpoint_")), reverse=True)


def unlisted_checkpoint(run: Storage) -> Storage | None:
    """The last whole checkpoint of a run whose list of checkpoints a kill left torn, or naming what is not there.

    Ray Train cannot start over such a list, so it is removed, and with it the checkpoints that nothing would name
    any more. None where the list is whole, or where there is no checkpoint.
    """
    try:
        listed = run.read_json(_LIST)["checkpoint_results"]
        if {result["checkpoint_dir_name"] for result in listed} <= set(checkpoint_names(run)):
            return None
    except InputError:
        pass
    run.remove(_LIST)
    found = None
    for name in checkpoint_names(run):
        if found is None and _is_whole(run.child(name)):
            found = run.child(name)
        else:
            run.remove(name)
    return found


def _is_whole(directory: Storage) -> bool:
    try:
        _read_state(directory, torch.device("cpu"))
        read_checkpoint(directory)
    except (DistindexError, RuntimeError, OSError, EOFError, safetensors.SafetensorError):
        return False
    return True


def _read_state(directory: Storage, device: torch.device) -> dict[str, Any]:
    # weights_only: a checkpoint from elsewhere must not run code.
    with directory.open_input("state.pt") as stream:
        return torch.load(stream, map_location=device, weights_only=True)
