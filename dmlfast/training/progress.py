"""How a run goes, shown and stored: a progress bar, `summary.csv` and TensorBoard's files."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from dmlfast.training.events import EventFile
from dmlfast.training.run_folder import RunFolder


class Progress:
    """Collects what steps report and writes it out as rows. To be used in a `with` block.

    Args:
        run: the folder that is written to.
        first: how many steps are done already.
        total: how many steps the run has.
        batch_size: images in a step.
        steps_per_epoch: steps in a pass over the classes.
        selected_on: the split that evaluations are made on; it names their columns.
        decoding: whether images are made of pictures, so that steps may wait for them.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        first: int,
        total: int,
        batch_size: int,
        steps_per_epoch: int,
        selected_on: str,
        decoding: bool = False,
    ):
        self.run = run
        self.step = first
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.selected_on = selected_on
        self.decoding = decoding
        self.events = EventFile(run.events_path, first_step=first + 1)
        self.bar = tqdm(
            total=total,
            initial=first,
            leave=False,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            nrows=24,  # else nothing is shown on a terminal that does not tell its size
            disable=not sys.stderr.isatty(),
        )
        self._reset()
        self.start_clock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()

    def _reset(self) -> None:
        self.steps, self.loss_sum, self.seconds, self.loss_seconds = 0, 0.0, 0.0, 0.0
        self.wait_seconds = 0.0

    def start_clock(self) -> None:
        """Starts the time of the next step: what came since the last one is not counted."""
        self.started = time.perf_counter()

    def add(self, loss: float, loss_seconds: float, wait_seconds: float = 0.0) -> None:
        """Takes in a step.

        Args:
            loss: of the step.
            loss_seconds: how long it took, forward and backward.
            wait_seconds: how long the step waited for its images.
        """
        self.seconds += time.perf_counter() - self.started
        self.start_clock()
        self.step += 1
        self.steps += 1
        self.loss_sum += loss
        self.loss_seconds += loss_seconds
        self.wait_seconds += wait_seconds
        self.bar.set_postfix_str(self._postfix(loss), refresh=False)
        self.bar.update()

    def _postfix(self, loss: float) -> str:
        """What the bar says of the steps since the last row."""
        rate = self.steps * self.batch_size / self.seconds
        share, waiting = self.loss_seconds / self.seconds, self.wait_seconds / self.seconds
        text = f"loss {loss:.3f}, {rate:.0f} images/s, {share:.0%} in the loss"
        return f"{text}, {waiting:.0%} waiting for images" if self.decoding else text

    def write_row(self, lr: float, metrics: dict[str, float] | None) -> None:
        """Writes what came in since the last row, and the values of an evaluation, if any."""
        rates = {
            "loss": self.loss_sum / self.steps,
            "lr": lr,
            "images_per_second": self.steps * self.batch_size / self.seconds,
            "loss_share": self.loss_seconds / self.seconds,
        }
        names = ("recall_at_1", "map_at_r")
        values = {f"{self.selected_on}_{name}": (metrics or {}).get(name) for name in names}
        epoch = self.step / self.steps_per_epoch
        numbers = {"epoch": epoch, **rates, **values}
        row = {name: "" if value is None else f"{value:.6g}" for name, value in numbers.items()}
        row = {"step": str(self.step), **row, "selected_on": self.selected_on if metrics else ""}
        self.run.append_summary(row)
        known = {name: value for name, value in numbers.items() if value is not None}
        self.events.add_scalars(known, self.step)
        self._reset()
