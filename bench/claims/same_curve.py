"""The training curve with the fused lifted loss, laid over that with pytorch-metric-learning's."""

from collections.abc import Sequence

import torch
from dmlfast.bench.baselines import lifted_pml
from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.report import plain_axes
from dmlfast.bench.claims.retrieval import MEASURES, recall, small_run
from dmlfast.bench.claims.study import Run
from dmlfast.bench.plot import DMLFAST, INK, OTHERS
from matplotlib.figure import Figure

from dmlfast.losses import register_loss
from dmlfast.training import RunFolder

EVERY = 10  # steps that a point of the curve is the mean of
PML, REFERENCE, OURS = "pytorch-metric-learning", "dmlfast, reference", "dmlfast"


class PMLLifted(torch.nn.Module):
    """pytorch-metric-learning's lifted loss, with its normalisation switched off."""

    def __init__(self, impl: str = "auto") -> None:
        super().__init__()
        self.loss = lifted_pml()

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, (), of embeddings (N, D) and labels (N,)."""
        return self.loss(embeddings, labels)


register_loss("pml-lifted", PMLLifted)


def curve(run: RunFolder) -> dict[str, float]:
    """The curve of the loss by step, and what the run came to."""
    losses = {f"loss_{row['step']}": float(row["loss"]) for row in run.summary()}
    return recall(run) | losses


def draw_curves(claim: Claim, runs: Sequence[Run]) -> Figure:
    """The curves of the first seed, and how far apart they are with each."""
    figure = Figure(figsize=(10, 4.2), facecolor="white")
    left, right = (plain_axes(axes, grid="y") for axes in figure.subplots(1, 2))
    styles = {PML: (OTHERS[0], 4.0), REFERENCE: (OTHERS[1], 2.4), OURS: (DMLFAST, 1.2)}
    curves = {(run.arm, run.seed): _points(run) for run in runs}
    for arm, (colour, width) in styles.items():
        for seed in claim.seeds:
            steps, losses = curves[arm, seed]
            if seed == claim.seeds[0]:
                left.plot(steps, losses, color=colour, linewidth=width, label=arm)
            if arm != OURS:
                apart = (losses / curves[OURS, seed][1] - 1).abs()
                label = f"{arm} - dmlfast" if seed == claim.seeds[0] else None
                right.plot(steps, apart, color=colour, linewidth=1, label=label)
    right.set_yscale("log")
    titles = (
        f"Lifted loss in training, seed {claim.seeds[0]}",
        "Distance apart, every seed, relative",
    )
    for axes, title in zip((left, right), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11, color=INK, weight="bold")
        axes.set_xlabel("step", color=INK)
        axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def _points(run: Run) -> tuple[list[int], torch.Tensor]:
    named = {int(name[5:]): value for name, value in run.values.items() if name[:5] == "loss_"}
    return list(named), torch.tensor(list(named.values()))


CLAIM = Claim(
    name="same_curve",
    title="The same training with another's lifted loss",
    hypothesis="With pytorch-metric-learning's loss, its normalisation off, training takes the "
    "same course: curves that differ by rounding first, and by no more than those of two "
    "implementations of our own, and the same recall within the intervals.",
    settings={**small_run(), "loss": "lifted", "log_interval": EVERY},
    arms=[
        Arm(OURS, {}),
        Arm(REFERENCE, {"impl": "reference"}),
        Arm(PML, {"loss": "pml-lifted"}),
    ],
    baseline=OURS,
    measure=curve,
    measures=MEASURES,
    picture=draw_curves,
)
