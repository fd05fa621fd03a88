"""Queries with their nearest neighbours, as a picture: images in rows, or texts in a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from distindex.errors import InputError

LineStyle = Literal["-", "--"]

SAME, OTHER, UNKNOWN, QUERY = "#009E73", "#D55E00", "#999999", "#333333"
_TEXT_CHARACTERS = 92
_LABEL_CHARACTERS = 24
_CAPTION_CHARACTERS = 12
_LINE_INCHES = 0.24
_TEXT_WIDTH_INCHES = 10.5


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """One item of a gallery.

    Attributes:
        content: a grey image [height, width], a colour image [height, width, 3 or 4], or a text.
        label: its label or labels; None where it is not known.
        distance: its distance in bits from the query; None for the query itself.
    """

    content: npt.NDArray | str
    label: str | Sequence[str] | None = None
    distance: int | None = None

    @property
    def labels(self) -> frozenset[str]:
        if self.label is None:
            return frozenset()
        return frozenset([self.label] if isinstance(self.label, str) else self.label)


def neighbour_gallery(
    queries: Sequence[GalleryItem],
    neighbours: Sequence[Sequence[GalleryItem]],
    title: str = "Queries and their nearest neighbours",
) -> Figure:
    """A picture of queries and their neighbours, nearest first.

    A neighbour's frame or bar is green and solid where it shares a label with the query, vermilion and
    dashed where it does not, grey where one of the two has no label.

    Raises:
        InputError: no queries, not one list of neighbours per query, or texts mixed with images.
    """
    if not queries or len(queries) != len(neighbours):
        raise InputError(f"a gallery of {len(queries)} queries and {len(neighbours)} lists of neighbours")
    texts = {isinstance(item.content, str) for line in ([*queries], *neighbours) for item in line}
    if len(texts) > 1:
        raise InputError("a gallery shows either texts or images, not both")
    return _text_gallery(queries, neighbours, title) if texts.pop() else _image_gallery(queries, neighbours, title)


def _image_gallery(queries: Sequence[GalleryItem], neighbours: Sequence[Sequence[GalleryItem]], title: str) -> Figure:
    columns = 1 + max(len(line) for line in neighbours)
    figure = Figure(figsize=(max(4.5, 1.1 * columns + 0.3), 1.35 * len(queries) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(queries), columns, squeeze=False)
    for axes_row, query, line in zip(grid, queries, neighbours, strict=True):
        _draw_image(
            axes_row[0], query, QUERY, "-", f"query: {_clip(_label_text(query), _CAPTION_CHARACTERS)}".rstrip(": ")
        )
        for axes, item in zip(axes_row[1:], line, strict=False):
            label = _clip(_label_text(item), _CAPTION_CHARACTERS)
            caption = ", ".join(part for part in (label, _distance_text(item)) if part)
            _draw_image(axes, item, *_agreement(query, item), caption)
        for axes in axes_row[1 + len(line) :]:
            axes.set_axis_off()
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    _add_legend(figure, queries, neighbours, "outside lower left")
    return figure


def _draw_image(axes: Axes, item: GalleryItem, colour: str, style: LineStyle, caption: str) -> None:
    axes.imshow(item.content, cmap="gray", interpolation="nearest", aspect="equal")  # type: ignore[arg-type]
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(3)
        spine.set_linestyle(style)
    axes.set_title(caption, fontsize=8, pad=5, parse_math=False)


def _text_gallery(queries: Sequence[GalleryItem], neighbours: Sequence[Sequence[GalleryItem]], title: str) -> Figure:
    lines = sum(len(line) + 1.6 for line in neighbours)
    height = _LINE_INCHES * lines + 0.95
    figure = Figure(figsize=(_TEXT_WIDTH_INCHES, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, _TEXT_WIDTH_INCHES)
    axes.set_ylim(height, 0)
    axes.text(0.15, 0.3, title, fontsize=12, va="center", parse_math=False)
    y = 0.75
    for query, line in zip(queries, neighbours, strict=True):
        axes.add_patch(
            Rectangle((0.15, y - _LINE_INCHES / 2), _TEXT_WIDTH_INCHES - 0.3, _LINE_INCHES, color="#EEEEEE")
        )
        _draw_text(axes, y, query, "query", bold=True)
        for item in line:
            y += _LINE_INCHES
            colour, style = _agreement(query, item)
            dashes = "-" if style == "-" else (0, (1, 0.6))
            axes.plot([0.22, 0.22], [y - 0.09, y + 0.09], color=colour, linestyle=dashes, linewidth=4)
            _draw_text(axes, y, item, _distance_text(item), bold=False)
        y += 1.6 * _LINE_INCHES
    _add_legend(figure, queries, neighbours, "lower left")
    return figure


def _draw_text(axes: Axes, y: float, item: GalleryItem, what: str, bold: bool) -> None:
    weight = "bold" if bold else "normal"
    label = _clip(_label_text(item), _LABEL_CHARACTERS)
    # Bold letters are wider.
    content = _clip(str(item.content), _TEXT_CHARACTERS - 8 * bold)
    for x, text in ((0.35, what), (1.1, label), (3.1, content)):
        axes.text(x, y, text, fontsize=8.5, va="center", weight=weight, parse_math=False)


def _agreement(query: GalleryItem, item: GalleryItem) -> tuple[str, LineStyle]:
    """Colour and line style of a neighbour's frame."""
    if not query.labels or not item.labels:
        return UNKNOWN, "-"
    return (SAME, "-") if query.labels & item.labels else (OTHER, "--")


def _label_text(item: GalleryItem) -> str:
    return ", ".join(sorted(item.labels))


def _distance_text(item: GalleryItem) -> str:
    if item.distance is None:
        return ""
    return "1 bit" if item.distance == 1 else f"{item.distance} bits"


def _clip(text: str, characters: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 3].rstrip() + "..."


def _add_legend(
    figure: Figure,
    queries: Sequence[GalleryItem],
    neighbours: Sequence[Sequence[GalleryItem]],
    location: Literal["lower left", "outside lower left"],
) -> None:
    names: dict[tuple[str, LineStyle], str] = {
        (SAME, "-"): "shares a label with the query",
        (OTHER, "--"): "shares no label with the query",
        (UNKNOWN, "-"): "label not known",
    }
    shown = {_agreement(query, item) for query, line in zip(queries, neighbours, strict=True) for item in line}
    handles = [
        Line2D([], [], color=colour, linestyle=style, linewidth=3, label=name)
        for (colour, style), name in names.items()
        if (colour, style) in shown
    ]
    if handles:
        figure.legend(handles=handles, loc=location, ncols=len(handles), frameon=False, fontsize=8, handlelength=3.5)
