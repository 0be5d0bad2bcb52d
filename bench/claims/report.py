"""What a claim came to: a table with 95 % intervals, and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from dmlfast.bench.claims.claim import Claim
from dmlfast.bench.claims.study import REPORTED, Run
from dmlfast.bench.plot import DMLFAST, FAINT, INK, OTHERS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from dmlfast.files import atomic_write_path


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % interval by Student's t."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)) if n else math.nan, math.nan
    return float(np.mean(values)), float(
        stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    )


def values_of(runs: Sequence[Run], arm: str, measure: str) -> dict[int, float]:
    """What an arm's reported runs measured, by seed; those that diverged are missing."""
    return {
        run.seed: run.values[measure]
        for run in runs
        if run.stage == REPORTED and run.arm == arm and measure in run.values
    }


def difference(claim: Claim, runs: Sequence[Run], arm: str, measure: str) -> tuple[float, float]:
    """By how much an arm is above the baseline with the same seed: mean and half width."""
    ours, theirs = (values_of(runs, name, measure) for name in (arm, claim.baseline))
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def table(claim: Claim, runs: Sequence[Run]) -> str:
    """A row an arm, in Markdown; shares are in per cent, differences of the same seeds."""
    first, *_ = claim.measures
    heads = ["", *claim.measures.values(), f"{claim.measures[first]}, above {claim.baseline}"]
    lines = [[*heads, "chosen on validation", "runs"], ["---"] * (len(heads) + 2)]
    for arm in claim.arms:
        chosen = {run.settings for run in runs if (run.stage, run.arm) == (REPORTED, arm.name)}
        values = [values_of(runs, arm.name, measure) for measure in claim.measures]
        above = (
            ""
            if arm.name == claim.baseline
            else _percent(*difference(claim, runs, arm.name, first), sign="+")
        )
        lines.append(
            [
                arm.name,
                *(
                    _percent(*interval(list(group.values()))) if group or not values[0] else ""
                    for group in values
                ),
                above,
                ", ".join(sorted(chosen)) or "nothing",
                str(len(values[0])),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(mean: float, half: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}" if math.isfinite(mean) else "diverged"


def save_picture(claim: Claim, runs: Sequence[Run], path: Path) -> None:
    """Draws the claim's own picture, or the first measure of every reported run."""
    with atomic_write_path(path) as temporary:
        (claim.picture or draw)(claim, runs).savefig(temporary, dpi=160)


def draw(claim: Claim, runs: Sequence[Run]) -> Figure:
    """A dot a run; the arms are points of a curve where they have an x, else rows."""
    measure, label = next(iter(claim.measures.items()))
    curve = all(arm.x is not None for arm in claim.arms)
    figure = Figure(figsize=(7, 4.2 if curve else 1.5 + 0.42 * len(claim.arms)), facecolor="white")
    axes = plain_axes(figure.add_subplot(), grid="y" if curve else "x")
    (_draw_curve if curve else _draw_rows)(axes, claim, runs, measure)
    share = f"{label} on test classes, %"
    axes.set(**{"xlabel": claim.x_label, "ylabel": share} if curve else {"xlabel": share})
    axes.set_title(claim.title, loc="left", fontsize=11, color=INK, weight="bold")
    figure.tight_layout()
    return figure


def plain_axes(axes: Axes, grid: Literal["x", "y"]) -> Axes:
    """The axes in the style of these pictures, with lines across at the ticks of one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=INK, labelsize=9, length=0)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    return axes


def _draw_curve(axes: Axes, claim: Claim, runs: Sequence[Run], measure: str) -> None:
    places = [arm.x for arm in claim.arms if arm.x is not None]
    groups = [list(values_of(runs, arm.name, measure).values()) for arm in claim.arms]
    bounds = 100 * np.array([interval(group) for group in groups])
    for place, group in zip(places, groups, strict=True):
        axes.plot(
            [place] * len(group),
            100 * np.array(group),
            "o",
            color=DMLFAST,
            alpha=0.35,
            markersize=4,
        )
    axes.errorbar(places, bounds[:, 0], bounds[:, 1], color=DMLFAST, linewidth=2, capsize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:,g}" for place in places])
    axes.minorticks_off()


def _draw_rows(axes: Axes, claim: Claim, runs: Sequence[Run], measure: str) -> None:
    colours = (DMLFAST, *OTHERS)
    for row, arm in enumerate(claim.arms):
        group = list(values_of(runs, arm.name, measure).values())
        mean, half = interval(group)
        colour = colours[row % len(colours)]
        axes.plot(
            100 * np.array(group), [row] * len(group), "o", color=colour, alpha=0.35, markersize=5
        )
        axes.errorbar(
            100 * mean,
            row,
            xerr=100 * half,
            fmt="|",
            color=colour,
            markersize=14,
            capsize=4,
            linewidth=2,
        )
    axes.set_yticks(range(len(claim.arms)), [arm.name for arm in claim.arms])
    axes.set_ylim(len(claim.arms) - 0.5, -0.5)
