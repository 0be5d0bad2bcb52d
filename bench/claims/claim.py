"""What a claim is: arms that are tuned with the same effort and then trained from several seeds."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmlfast.training import RunFolder, TrainConfig

if TYPE_CHECKING:
    from dmlfast.bench.claims.study import Run
    from matplotlib.figure import Figure

Settings = Mapping[str, Any]  # of `TrainConfig`, by the names of its fields


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    settings: what sets it apart from the other arms.
    x: its place on the axis, where the arms are the points of a curve.
    grid: what is tuned in place of the claim's grid.
    """

    name: str
    settings: Settings
    x: float | None = None
    grid: Mapping[str, Sequence[Any]] | None = None


@dataclass(frozen=True)
class Claim:
    """A statement about results, and the budget by which it is tested.

    hypothesis: what is expected, written before anything was run.
    settings: of every run.
    grid: the values that tuning trials are drawn from, by setting.
    trials: tuning trials of each arm; the best MAP at R on validation classes wins.
    baseline: the arm that the others are compared with.
    measure: what is measured of a run that is reported, by name, on the test classes.
    measures: the names that a table shows, and how it writes them; the first one is drawn.
    picture: draws something else instead.
    seeds: of the runs that are reported.
    """

    name: str
    title: str
    hypothesis: str
    settings: Settings
    arms: Sequence[Arm]
    baseline: str
    measure: Callable[[RunFolder], dict[str, float]]
    measures: Mapping[str, str]
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    trials: int = 0
    x_label: str = ""
    picture: "Callable[[Claim, Sequence[Run]], Figure] | None" = None
    seeds: Sequence[int] = range(5)

    def config(self, arm: Arm, chosen: Settings, seed: int) -> TrainConfig:
        """The settings of a run."""
        return TrainConfig(**{**self.settings, **arm.settings, **chosen, "seed": seed})

    def trials_of(self, arm: Arm) -> list[dict[str, Any]]:
        """What an arm's tuning trials try: drawn from its grid, alike for arms with like grids."""
        grid = self.grid if arm.grid is None else arm.grid
        points = [
            dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())
        ]
        order = np.random.default_rng(0).permutation(len(points))[: self.trials]
        return [points[k] for k in sorted(order)]

    @property
    def tuning_seed(self) -> int:
        """The seed of the tuning trials, none of those that are reported."""
        return max(self.seeds) + 1

    @property
    def budget(self) -> str:
        """What each arm may cost, in a sentence."""
        configs = [self.config(arm, {}, 0) for arm in self.arms]
        images = sorted({(config.max_steps or 0) * config.batch_size for config in configs})
        size = " to ".join(f"{number:,}" for number in dict.fromkeys((images[0], images[-1])))
        tuning = (
            f"{self.trials} tuning trials, and then {len(self.seeds)} runs with the settings that "
            "did best"
        )
        return (
            f"for each arm {tuning if self.trials else f'{len(self.seeds)} runs'}, of {size} "
            "images each"
        )
