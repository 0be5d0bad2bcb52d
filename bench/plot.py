"""One picture of a benchmark: time and memory against the number of rows."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dmlfast.bench.report import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from dmlfast.files import atomic_write_path
from dmlfast.text import counted

INK, FAINT = "#24292f", "#d8dee4"
DMLFAST = "#0969da"
OTHERS = (
    *("#bc4c00", "#8250df", "#1a7f37", "#bf3989", "#6e7781"),
    *("#9a6700", "#116329", "#0550ae", "#a40e26", "#24292f"),
)
LABEL_GAP = 0.062  # of the height of a panel


def save_plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draws the rows of one machine at the width that most of them have; whole or not at all."""
    with atomic_write_path(path) as temporary:
        draw(rows, title).savefig(temporary, dpi=160)


def draw(rows: Sequence[Row], title: str) -> Figure:
    """Two panels: milliseconds, and MiB beyond inputs, loss and gradients."""
    figure = Figure(figsize=(10, 4.6), facecolor="white")
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.065, right=0.89, top=0.8, bottom=0.12, wspace=0.5)
    figure.text(0.065, 0.93, title, fontsize=13, weight="bold", color=INK)
    measured = [row for row in rows if row.median_ms is not None]
    if measured:
        width = Counter(row.d for row in measured).most_common(1)[0][0]
        measured = [row for row in measured if row.d == width]
        row = measured[0]
        threads = counted(row.threads, "thread")
        counts = sorted({row.classes for row in measured})
        span = f"{counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
        classes = f", {span} classes" if row.classes else ""
        conditions = (
            f"forward + backward, D = {width}{classes}, {row.dtype}, {threads}, {row.machine}"
        )
        figure.text(0.065, 0.882, conditions, fontsize=9, color=INK)
    for axes, field, unit in zip(
        panels, ("median_ms", "extra_mib"), ("time, ms", "extra memory, MiB"), strict=True
    ):
        _draw_panel(axes, measured, field, unit)
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row], field: str, unit: str) -> None:
    measured = [row for row in rows if getattr(row, field) is not None]
    axes.set_title(unit, loc="left", fontsize=10, color=INK)
    if not measured:
        axes.text(0, 0.95, "not measured", fontsize=9, color=INK)
        axes.set_axis_off()
        return
    axes.set_xscale("log", base=2)
    heights = [getattr(row, field) for row in measured]
    least = min(filter(None, heights), default=1)
    zeros = 0 in heights  # which have no logarithm: below the least other value the scale is even
    axes.set_yscale("symlog", linthresh=least) if zeros else axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.tick_params(which="both", colors=INK, labelsize=9, length=0)
    axes.set_xlabel("rows in the batch", fontsize=9, color=INK)
    counts = sorted({row.n for row in rows})
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:,g}" if value >= 0 else "")
    axes.minorticks_off()
    if not zeros and max(heights) < 20 * least:  # hardly a power of ten is among them
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    labels = []
    for provider, colour in _colours(rows).items():
        line = [row for row in measured if row.provider == provider]
        if line:
            line.sort(key=lambda row: row.n)
            values = [getattr(row, field) for row in line]
            ours = provider.startswith("dmlfast")
            axes.plot(
                [row.n for row in line], values, color=colour, marker="o", clip_on=False,
                markersize=4.5 if ours else 3.5, linewidth=2.4 if ours else 1.4,
                zorder=3 if ours else 2,
            )  # fmt: skip
            text = provider + _times(rows, line[-1], field)
            labels.append((line[-1].n, values[-1], text, colour))
    if zeros:
        axes.set_ylim(-0.2 * least, None if any(heights) else least)
    _write_labels(axes, labels)


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for every provider, dmlfast's own apart."""
    providers = list(dict.fromkeys(row.provider for row in rows))
    others = [name for name in providers if not name.startswith("dmlfast")]
    colours = {name: OTHERS[k % len(OTHERS)] for k, name in enumerate(others)}
    return {name: colours.get(name, DMLFAST) for name in providers}


def _times(rows: Sequence[Row], end: Row, field: str) -> str:
    """How many times as much as dmlfast takes, where a line ends."""
    ours = [
        getattr(row, field)
        for row in rows
        if row.provider.startswith("dmlfast") and row.n == end.n and getattr(row, field) is not None
    ]
    if end.provider.startswith("dmlfast") or not ours or not min(ours):
        return ""
    of_memory = getattr(end, field) / min(ours)
    ratio = of_memory if field == "extra_mib" else end.ratio_to_dmlfast or 0.0
    return f"  {ratio:,.{0 if ratio >= 10 else 1}f}\u00d7"


def _write_labels(axes: Axes, labels: Sequence[tuple[int, float, str, str]]) -> None:
    """Writes the labels in a column on the right, at a distance from each other.

    A dotted line leads there from a line that ends before; the label of a lone first point stands
    beside it.
    """
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    counts = axes.get_xticks()
    lowest = -1.0
    for n, value, text, colour in sorted(labels, key=lambda label: label[1]):
        x, y = to_axes.transform((n, value))
        if n == counts[0] < counts[-1]:
            x += 0.03
        else:
            if n < counts[-1]:
                axes.hlines(y, x, 1, colour, "dotted", linewidth=1, transform=axes.transAxes)
            x, y = 1.012, max(y, lowest + LABEL_GAP)
            lowest = y
        axes.text(x, y, text, color=colour, fontsize=9, va="center", transform=axes.transAxes)
