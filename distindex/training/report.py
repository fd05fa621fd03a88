"""What a person wants to see of a training run, as one page that needs nothing else: `report.html`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import ray
import torch

from distindex import __version__
from distindex.config import TrainConfig
from distindex.corpus.pair_answers import PairAnswers
from distindex.settings import as_json, without_secrets
from distindex.storage import Storage
from distindex.training.source import TrainingData

REPORT = "report.html"
_MOST_CLASSES = 30
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } td.bar { min-width: 14rem; }
td.bar span { display: block; height: .8rem; margin-top: .35rem; background: #0072B2; }
code { font-size: .9em; } img { max-width: 100%; }
"""


def write_report(
    storage: Storage, config: TrainConfig, data: TrainingData, metadata: Mapping[str, Any], resources: str
) -> None:
    """Write the page.

    Args:
        storage: the hasher's directory.
        config: the run's.
        data: the corpus.
        metadata: what the hasher keeps of the run.
        resources: workers, threads and devices, for people.
    """
    storage.write_bytes(REPORT, _page(config, data, metadata, resources).encode())


def described_answers(answered: PairAnswers) -> str:
    """What became of the answers about pairs, for people."""
    more = {
        "say what the labels say": answered.resolved,
        "contradict labels or each other": answered.contradictory,
        "name unknown ids": answered.unknown,
        "are not used by this method": answered.unused,
    }
    others = "".join(f", {count:,} {what}" for what, count in more.items() if count)
    return f"{len(answered):,} answers about pairs are used{others}"


def _page(config: TrainConfig, data: TrainingData, metadata: Mapping[str, Any], resources: str) -> str:
    history = metadata["history"]
    title = f"{config.method.name}, {config.bits} bits"
    precision, epochs = metadata["precision"], metadata["epochs"]
    known = data.known
    summary = {
        "kept": f"epoch {metadata['best_epoch']} of {epochs}" if epochs else "fitted at once",
        f"validation precision@{config.validation.k}": "not measured" if precision is None else f"{precision:.4f}",
        "rows": f"{data.rows:,}" + (f" ({data.rejected:,} bad rows left out)" if data.rejected else ""),
        "features": f"{data.features.width:,}, {data.features.kind}",
        "labeled rows": f"{metadata['labeled']:,} ({metadata['labeled'] / data.rows:.1%}), "
        f"{len(data.validation_rows):,} of them held out for validation",
        **({"pairs": described_answers(data.answered)} if data.answered.given else {}),
        "corpus": "held in memory" if metadata["streaming"] is None else "streamed from its files",
        "seconds in epochs": f"{sum(epoch['seconds'] for epoch in history):,.0f}",
        "rows per second": f"{np.median([epoch['rows_per_second'] for epoch in history]):,.0f}" if history else "-",
    }
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _table(summary.items()),
        *(["<h2>Epochs</h2>", _picture(history, metadata["best_epoch"], config.validation.k)] if history else []),
        *(["<h2>Labeled rows of each class</h2>", _classes(known.names, known.index)] if known.names else []),
        "<h2>Computed on</h2>",
        _table(_hardware(resources).items()),
        "<h2>Settings</h2>",
        _table(_flat(without_secrets(as_json(config)))),
    ]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _table(items: Iterable[tuple[str, Any]]) -> str:
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in items)
    return f"<table>{''.join(rows)}</table>"


def _picture(history: list[dict[str, Any]], best_epoch: int, k: int) -> str:
    # Here, since every training worker loads this room, and matplotlib is a seventh of what that takes.
    from distindex.evaluation.plots import training_figure

    buffer = io.BytesIO()
    training_figure(history, best_epoch, k).savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="loss terms, precision and speed by epoch" src="data:image/png;base64,{encoded}">'


def _classes(names: tuple[str, ...], index: np.ndarray) -> str:
    count_C = np.bincount(index, minlength=len(names))
    most, rows = max(1, int(count_C.max())), []
    for place in np.argsort(-count_C, kind="stable")[:_MOST_CLASSES]:
        count = int(count_C[place])
        rows.append(
            f'<tr><th>{html.escape(names[place])}</th><td class="number">{count:,}</td>'
            f'<td class="bar"><span style="width: {100 * count / most:.1f}%"></span></td></tr>'
        )
    more = len(names) - len(rows)
    return f"<table>{''.join(rows)}</table>" + (f"<p>and {more:,} more classes</p>" if more > 0 else "")


def _hardware(resources: str) -> dict[str, str]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    devices = sorted(
        {name.partition(":")[2] for node in nodes for name in node if name.startswith("accelerator_type")}
    )
    cpus = sum(node.get("CPU", 0) for node in nodes)
    memory = sum(node.get("memory", 0) + node.get("object_store_memory", 0) for node in nodes) / 2**30
    return {
        "workers": resources,
        "cluster": f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus:.0f} CPUs, {memory:.0f} GiB for Ray",
        "accelerators": ", ".join(devices) or "none",
        "versions": f"distindex {__version__}, torch {torch.__version__}, ray {ray.__version__}",
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings by dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found
