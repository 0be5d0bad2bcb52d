"""The picture of a run: its loss and its retrieval over the steps."""

from pathlib import Path

from dmlfast.files import atomic_write_path
from dmlfast.training.run_folder import RunFolder

LOSS_COLOUR, RECALL_COLOUR, MAP_COLOUR = "#31688e", "#c4451c", "#e0a458"


def draw_curves(run: RunFolder) -> Path:
    """Draws `summary.csv` into `curves.png` and returns its path."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    config, rows = run.config, run.summary()
    split = config.select_on

    def curve(axes: Axes, column: str, colour: str, label: str = "") -> list[tuple[int, float]]:
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        if points:
            marker = "o" if label else ""
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5)
            step, value = points[-1]
            axes.annotate(
                f"{label} {value:.3f}".strip(), (step, value), xytext=(6, 0),
                textcoords="offset points", color=colour, va="center", annotation_clip=False,
            )  # fmt: skip
        return points

    figure = Figure(figsize=(10, 3.4), dpi=150, layout="constrained")
    loss_axes, recall_axes = figure.subplots(1, 2)
    curve(loss_axes, "loss", LOSS_COLOUR)
    loss_axes.set_title(f"{config.loss} loss on {config.dataset}", loc="left")
    curve(recall_axes, f"{split}_recall_at_1", RECALL_COLOUR, "recall@1")
    precisions = curve(recall_axes, f"{split}_map_at_r", MAP_COLOUR, "MAP@R")
    if precisions:
        step, value = max(precisions, key=lambda point: point[1])
        recall_axes.plot(step, value, "o", color=MAP_COLOUR, markersize=9, fillstyle="none")
        if step < precisions[-1][0]:
            recall_axes.annotate(
                f"best {value:.3f}", (step, value), xytext=(0, 8), textcoords="offset points",
                color=MAP_COLOUR, ha="center",
            )  # fmt: skip
    held_out = "held-out training classes" if split == "val" else "test classes"
    recall_axes.set_title(f"retrieval among {held_out}", loc="left")
    for axes in (loss_axes, recall_axes):
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.03 * int(rows[-1]["step"]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    with atomic_write_path(run.curves_path) as path:
        figure.savefig(path)
    return run.curves_path
