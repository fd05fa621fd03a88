"""Pictures of an evaluation. Each function returns a figure; `save_figure` writes it.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart; markers and
line styles repeat the difference. Figures are built on matplotlib's objects, never on pyplot's global state.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from distindex.errors import InputError
from distindex.evaluation.metrics import RetrievalMetrics
from distindex.evaluation.statistics import CodeStatistics
from distindex.storage import Storage

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINE_STYLES = ("-", "--", "-.", ":")
GRID = "#DDDDDD"
_DOTS_PER_INCH = 150


def save_figure(figure: Figure, storage: Storage, path: str) -> None:
    """Write a figure as PNG; the file appears when it is complete."""
    buffer = io.BytesIO()
    # Without matplotlib's version in it, the same figures give the same file.
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    storage.write_bytes(path, buffer.getvalue())


def precision_recall_figure(metrics: Mapping[str, RetrievalMetrics]) -> Figure:
    """Precision over recall as the Hamming radius (or the lowest score) grows, one line per method."""
    figure, axes = _figure_with_axes("Precision and recall over all thresholds")
    for number, (method, metric) in enumerate(metrics.items()):
        curve = metric.curve
        style = _line_style(number)
        # Scores have hundreds of thresholds, on which markers would make one thick band.
        style["markevery"] = max(1, len(curve.recall) // 12)
        axes.plot(curve.recall, curve.precision, label=method, **style)
    axes.set_xlabel("recall (relevant pairs found / relevant pairs)")
    axes.set_ylabel("precision (relevant pairs found / pairs found)")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    _add_legend(figure, axes)
    return figure


def precision_at_k_figure(metrics: Mapping[str, RetrievalMetrics]) -> Figure:
    """Expected precision of the k nearest rows over k, one line per method."""
    figure, axes = _figure_with_axes("Precision of the k nearest")
    ks = sorted({k for metric in metrics.values() for k in metric.precision})
    for number, (method, metric) in enumerate(metrics.items()):
        axes.plot(list(metric.precision), list(metric.precision.values()), label=method, **_line_style(number))
    axes.set_xscale("log")
    axes.set_xticks(ks, [f"{k:,}" for k in ks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("k (nearest rows, log scale)")
    axes.set_ylabel("precision@k (share of relevant rows)")
    axes.set_ylim(0, 1.02)
    _add_legend(figure, axes)
    return figure


def precision_over_labels_figure(
    curves: Mapping[str, Mapping[float, tuple[float, float]]],
    levels: Mapping[str, float],
    k: int,
    title: str,
    close: bool = False,
) -> Figure:
    """Precision of the k nearest over the share of labeled rows, one line per method.

    Args:
        curves: per method and share of labels the mean and the spread of its precision; the spread is a band.
        levels: precision of methods that read no labels, drawn as level lines.
        k: neighbours counted.
        title: what was searched, and how long the codes are.
        close: for curves that lie together: shares on a logarithmic axis, and of precision what the curves reach.
    """
    figure, axes = _figure_with_axes(title)
    for number, (method, curve) in enumerate(curves.items()):
        shares = sorted(curve)
        mean, spread = np.array([curve[share] for share in shares]).T
        style = _line_style(number)
        axes.plot(shares, mean, label=method, **style)
        axes.fill_between(shares, mean - spread, mean + spread, color=style["color"], alpha=0.12, linewidth=0)
    for number, (method, level) in enumerate(levels.items()):
        style = LINE_STYLES[1 + number % (len(LINE_STYLES) - 1)]
        shade = str(0.25 + 0.4 * number / max(1, len(levels) - 1))
        axes.axhline(level, color=shade, linestyle=style, linewidth=1.2, zorder=2, label=f"{method} (no labels)")
    axes.set_xlabel("rows with a label")
    axes.set_ylabel(f"precision@{k} (share of relevant rows)")
    every = sorted({share for curve in curves.values() for share in curve})
    if close:
        axes.set_xscale("log")
        axes.set_xticks(every)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    else:
        # Curves over a few labels alone would stand in a corner.
        axes.set_xlim(0, 1.02 * (every[-1] if every else 1.0))
        axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    _add_legend(figure, axes)
    return figure


def bit_balance_figure(statistics: Mapping[str, CodeStatistics]) -> Figure:
    """Share of ones in each bit, one panel per method.

    Raises:
        InputError: there is no method with codes.
    """
    if not statistics:
        raise InputError("bit balance needs at least one method with codes")
    figure = Figure(figsize=(8, 0.9 + 1.6 * len(statistics)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(statistics), 1, sharex=False, sharey=True, squeeze=False)[:, 0]
    for number, (axes, (method, codes)) in enumerate(zip(panels, statistics.items(), strict=True)):
        axes.bar(
            np.arange(codes.bits),
            codes.bit_balance_K,
            width=0.8,
            color=OKABE_ITO[number % len(OKABE_ITO)],
            zorder=2,
        )
        axes.axhline(0.5, color="#333333", linewidth=1, linestyle="--", zorder=3)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlim(-0.7, codes.bits - 0.3)
        axes.set_xticks(range(0, codes.bits, max(1, codes.bits // 8)))
        axes.set_title(
            f"{method}: {codes.distinct:,} distinct codes of {codes.rows:,}, "
            f"largest bucket {codes.largest_bucket:,}, entropy {codes.bucket_entropy:.1f} bits",
            fontsize=9,
            loc="left",
        )
        _clean(axes)
    panels[-1].set_xlabel("bit (position in the code)")
    figure.supylabel("share of ones (0.5 is balanced)", fontsize=10)
    return figure


def training_figure(history: Sequence[Mapping[str, float]], best_epoch: int, k: int) -> Figure:
    """Each loss term, the validation precision, the bits' imbalance and the speed by epoch, one panel each.

    Args:
        history: the metrics of each epoch, in order.
        best_epoch: counted from 1; marked in every panel.
        k: neighbours that precision counts.

    Raises:
        InputError: there is no epoch.
    """
    if not history:
        raise InputError("a training figure needs at least one epoch")
    left_out = ("epoch", "seconds", "labeled_pairs_per_step", "precision", "bit_imbalance", "rows_per_second")
    terms = {name: f"loss: {name}" for name in history[0] if name not in left_out}
    names = {"precision": f"validation precision@{k}", **terms, "bit_imbalance": "imbalance of the bits"}
    names = {name: title for name, title in names.items() if name in history[0]} | {"rows_per_second": "rows/s"}
    columns = 3
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(9, 0.4 + 2.1 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    epochs = [epoch["epoch"] for epoch in history]
    for axes, (name, title) in zip(panels, names.items(), strict=False):
        color = OKABE_ITO[0] if name == "precision" else OKABE_ITO[1] if name in terms else OKABE_ITO[2]
        # A single epoch is a point.
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, [epoch[name] for epoch in history], color=color, linewidth=1.6, marker=marker, zorder=3)
        axes.axvline(best_epoch, color="#777777", linewidth=1, linestyle=":", zorder=2)
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _clean(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel(f"epoch (dotted: epoch {best_epoch}, which is kept)", fontsize=9)
    return figure


def _figure_with_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=12, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}"))
    _clean(axes)
    return figure, axes


def _line_style(number: int) -> dict[str, Any]:
    """The first method is the one to look at: thicker, and above the others."""
    return {
        "color": OKABE_ITO[number % len(OKABE_ITO)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINE_STYLES[number // len(OKABE_ITO) % len(LINE_STYLES)],
        "linewidth": 2.6 if number == 0 else 1.6,
        "markersize": 6 if number == 0 else 4.5,
        "zorder": 4 if number == 0 else 3,
        "clip_on": False,
    }


def _clean(axes: Axes) -> None:
    axes.grid(True, axis="y", color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    names = ["\n".join(textwrap.wrap(name, 24)) or name for name in names]
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
