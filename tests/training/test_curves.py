import numpy as np
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
