"""The picture of a run: its loss and its retrieval over the steps."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dmlfast.files import atomic_write_path
from dmlfast.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_COLOUR, RECALL_COLOUR, MAP_COLOUR = "#31688e", "#c4451c", "#e0a458"
HEIGHT_POINTS = 190  # of the axes, about
CLOSE = 0.07  # of that height, that of a label
FEW = 10  # points that are marked
Points = list[tuple[int, float]]


def draw_curves(run: RunFolder, closed_set: bool = False) -> Path:
    """Draws `summary.csv` into `curves.png` and returns its path.

    `closed_set` says that what is evaluated are images of the classes that are trained on.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    config, rows = run.config, run.summary()
    split = config.select_on

    def points(column: str) -> Points:
        return [(int(row["step"]), float(row[column])) for row in rows if row[column]]

    figure = Figure(figsize=(10, 3.4), dpi=150, layout="constrained")
    loss_axes, retrieval_axes = figure.subplots(1, 2)
    loss = points("loss")
    marker = "o" if len(loss) <= FEW else None
    loss_axes.plot(*zip(*loss, strict=True), color=LOSS_COLOUR, marker=marker, markersize=3.5)
    _label(loss_axes, f"{loss[-1][1]:.3f}", loss[-1], LOSS_COLOUR)
    loss_axes.set_ylabel("loss")
    loss_axes.set_title(f"{config.loss} loss on {config.dataset}", loc="left")
    recalls, precisions = points(f"{split}_recall_at_1"), points(f"{split}_map_at_r")
    if recalls:
        _draw_retrieval(retrieval_axes, recalls, precisions)
    retrieval_axes.set_ylabel("share, 1 at best")
    what = {"val": "held-out training", "test": "test"}[split]
    retrieval_axes.set_title(
        f"retrieval among {what} {'images' if closed_set else 'classes'}", loc="left"
    )
    for axes in (loss_axes, retrieval_axes):
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.03 * int(rows[-1]["step"]))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    with atomic_write_path(run.curves_path) as path:
        figure.savefig(path)
    return run.curves_path


def _draw_retrieval(axes: "Axes", recalls: Points, precisions: Points) -> None:
    """Both curves with their last values, and a ring around the best MAP@R."""
    for points, colour, width in ((recalls, RECALL_COLOUR, 2.5), (precisions, MAP_COLOUR, 1.5)):
        steps, values = zip(*points, strict=True)  # the second lets an equal first be seen
        axes.plot(steps, values, color=colour, linewidth=width, marker="o", markersize=3.5)
    axes.margins(y=0.12)
    best = max(precisions, key=lambda point: point[1])
    axes.plot(*best, "o", color=MAP_COLOUR, markersize=9, fillstyle="none")
    ends_best = best[0] == precisions[-1][0]
    if not ends_best:
        _label(axes, f"best MAP@R {best[1]:.3f}", best, MAP_COLOUR, up=10, right=0)

    recall, precision = recalls[-1][1], precisions[-1][1]
    low, high = axes.get_ylim()
    up = (CLOSE - abs(recall - precision) / (high - low)) * HEIGHT_POINTS / 2
    recall_up = math.copysign(max(0, up), recall - precision)
    _label(axes, f"recall@1 {recall:.3f}", recalls[-1], RECALL_COLOUR, up=recall_up)
    name = "best MAP@R" if ends_best else "MAP@R"
    _label(axes, f"{name} {precision:.3f}", precisions[-1], MAP_COLOUR, up=-recall_up)


def _label(
    axes: "Axes",
    text: str,
    point: tuple[int, float],
    colour: str,
    *,
    up: float = 0,
    right: float = 8,
) -> None:
    """Writes a text so many points up and right of a point; without `right`, above its middle."""
    axes.annotate(
        text, point, xytext=(right, up), textcoords="offset points", color=colour, va="center",
        ha="left" if right else "center", annotation_clip=False,
    )  # fmt: skip
