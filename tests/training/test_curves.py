from contextlib import nullcontext

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dmlfast.training.curves import LOSS_COLOUR, RECALL_COLOUR, draw_curves
from dmlfast.training.run_folder import create_run

from .helpers import tiny_config


def count(path, colour: str) -> int:
    """Pixels of about this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(axis=2) < 8).sum())


def rows(evaluated: bool):
    for step in range(1, 21):
        value = step / 40 if evaluated and step % 5 == 0 else None
        yield {
            "step": str(step),
            "loss": f"{1 / step}",
            "val_recall_at_1": "" if value is None else str(value),
            "val_map_at_r": "" if value is None else str(value / 2),
        }


def test_both_panels_show_what_there_is(tmp_path):
    counts = {}
    for evaluated in (False, True):
        run = create_run(tiny_config(), tmp_path / str(evaluated))
        for row in rows(evaluated):
            run.append_summary(row)
        path = draw_curves(run)
        assert path == run.curves_path
        counts[evaluated] = count(path, LOSS_COLOUR), count(path, RECALL_COLOUR)
    assert counts[False][0] > 1000
    assert counts[False][1] == 0
    assert min(counts[True]) > 1000


@pytest.mark.parametrize(("steps", "marked"), [(1, True), (10, True), (11, False)])
def test_few_points_of_the_loss_are_marked(tmp_path, monkeypatch, steps, marked):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    monkeypatch.setattr("dmlfast.training.curves.atomic_write_path", nullcontext)
    run = create_run(tiny_config(), tmp_path / "run")
    for row in list(rows(False))[:steps]:
        run.append_summary(row)
    draw_curves(run)
    loss, retrieval = figures[0].axes
    assert loss.lines[0].get_marker() == ("o" if marked else "None")
    assert len(loss.lines[0].get_xdata()) == steps
    assert (loss.get_ylabel(), retrieval.get_ylabel()) == ("loss", "share, 1 at best")


def test_a_single_loss_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("dmlfast.training.curves._label", lambda *args: None)
    run = create_run(tiny_config(), tmp_path / "run")
    run.append_summary(next(rows(False)))
    assert count(draw_curves(run), LOSS_COLOUR) > 20


def texts_of(monkeypatch, run, closed_set: bool = False) -> tuple[list[str], list[float]]:
    """Title and labels of the retrieval's panel, and the labels' heights in points."""
    figures = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *args: figures.append(args[0]) or real(*args))
    draw_curves(run, closed_set)
    (figure,) = figures
    axes = figure.axes[1]
    labels = sorted(axes.texts, key=lambda label: label.get_window_extent().y0)
    points = [label.get_window_extent().y0 * 72 / figure.dpi for label in labels]
    ticks = [tick for panel in figure.axes for tick in panel.get_xticks()]
    assert all(tick == int(tick) for tick in ticks)
    return [axes.get_title("left"), *(label.get_text() for label in labels)], points


@pytest.mark.parametrize(
    ("split", "closed_set", "what"),
    [
        ("val", False, "held-out training classes"),
        ("val", True, "held-out training images"),
        ("test", False, "test classes"),
        ("test", True, "test images"),
    ],
)
def test_the_title_says_what_is_retrieved(tmp_path, monkeypatch, split, closed_set, what):
    run = create_run(tiny_config(select_on=split), tmp_path / "run")
    run.append_summary({"step": "3", "loss": "1"} | retrieval(split, 0.5, 0.25))
    (title, *labels), _ = texts_of(monkeypatch, run, closed_set)
    assert title == f"retrieval among {what}"
    assert labels == ["best MAP@R 0.250", "recall@1 0.500"]


def retrieval(split: str, recall: float, precision: float) -> dict[str, str]:
    return {f"{split}_recall_at_1": str(recall), f"{split}_map_at_r": str(precision)}


def test_the_best_is_labelled_where_it_is_not_the_last(tmp_path, monkeypatch):
    run = create_run(tiny_config(), tmp_path / "run")
    for step, values in enumerate([(0.5, 0.2), (0.9, 0.6), (0.8, 0.4)], start=1):
        run.append_summary({"step": str(step), "loss": "1"} | retrieval("val", *values))
    (_, *labels), _ = texts_of(monkeypatch, run)
    assert labels == ["MAP@R 0.400", "best MAP@R 0.600", "recall@1 0.800"]


@pytest.mark.parametrize("last", [(0.5, 0.5), (0.5, 0.49), (0.49, 0.5)])
def test_labels_of_like_values_do_not_cover_each_other(tmp_path, monkeypatch, last):
    run = create_run(tiny_config(), tmp_path / "run")
    for step, values in enumerate([(0.2, 0.1), last], start=1):
        run.append_summary({"step": str(step), "loss": "1"} | retrieval("val", *values))
    (_, *labels), heights = texts_of(monkeypatch, run)
    assert {label.split()[-2] for label in labels} == {"recall@1", "MAP@R"}
    assert labels[1].startswith("recall@1") == (last[0] >= last[1])
    assert heights[1] - heights[0] > 10  # the height of the letters
