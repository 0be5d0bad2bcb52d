from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from dmlfast.bench.plot import draw, save_plot
from dmlfast.bench.report import Row
from matplotlib.figure import Figure
from PIL import Image

OURS = Row("lifted", "dmlfast-cpu", 128, 64, "float32", 1, "Some CPU, 2 cores", median_ms=1.0)
OURS.ratio_to_dmlfast, OURS.extra_mib = 1.0, 0.5
NAIVE = replace(OURS, provider="naive", median_ms=4.0, ratio_to_dmlfast=4.2, extra_mib=10.0)
PML = replace(NAIVE, provider="pml", median_ms=2e4, ratio_to_dmlfast=2e4)
ROWS = [NAIVE, PML, OURS]
ROWS += [replace(row, n=512, median_ms=16 * (row.median_ms or 0)) for row in (NAIVE, OURS)]
ROWS += [replace(NAIVE, d=512), replace(PML, n=512, median_ms=None, extra_mib=None)]


def texts(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


def test_lines_end_with_their_ratio() -> None:
    time, memory = texts(draw(ROWS, "A title"))
    assert sorted(time) == ["dmlfast-cpu", "naive  4.2\u00d7", "pml  20,000\u00d7"]
    assert sorted(memory) == ["dmlfast-cpu", "naive  20\u00d7", "pml  20\u00d7"]


def test_one_width_is_drawn() -> None:
    figure = draw(ROWS, "A title")
    assert "D = 64," in figure.texts[1].get_text()
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 1, 2]


def test_labels_do_not_lie_on_each_other() -> None:
    rows = [replace(NAIVE, provider=name) for name in "abcde"]
    rows += [replace(row, n=512) for row in rows]
    heights = sorted(text.get_position()[1] for text in draw(rows, "A title").axes[0].texts)
    assert min(b - a for a, b in pairwise(heights)) > 0.05


def test_zeros_are_drawn() -> None:
    ours, naive = replace(OURS, extra_mib=0.0), replace(NAIVE, extra_mib=3.0)
    for rows, top in (([ours], 1), ([ours, naive], 3)):
        axes = draw(rows, "A title").axes[1]
        assert [text.get_text() for text in axes.texts] == [row.provider for row in rows]
        assert [list(line.get_ydata()) for line in axes.lines] == [[row.extra_mib] for row in rows]
        low, high = axes.get_ylim()
        assert low < 0 < top <= high
        assert 0 in axes.get_yticks()
        foot, end = axes.transData.transform([(128, 0), (128, top)])[:, 1]
        assert end - foot > 100  # pixels of about 340
    others = [replace(naive, extra_mib=0.0), replace(ours, extra_mib=2.0)]
    assert texts(draw(others, "A title"))[1] == ["naive  0.0\u00d7", "dmlfast-cpu"]


def test_what_is_not_measured_has_no_axes() -> None:
    time, memory = draw([replace(OURS, extra_mib=None)], "A title").axes
    assert time.axison
    assert not memory.axison
    assert [text.get_text() for text in memory.texts] == ["not measured"]


def test_picture_is_written_also_of_nothing(tmp_path: Path) -> None:
    for rows in (ROWS, [], [replace(OURS, median_ms=None, extra_mib=None)]):
        save_plot(rows, "A title", tmp_path / "bench.png")
        assert Image.open(tmp_path / "bench.png").size == (1600, 736)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.png"]


def test_values_within_a_decade_have_ticks() -> None:
    rows = [replace(row, n=64, classes=10) for row in (OURS, replace(NAIVE, median_ms=1.9))]
    figure = draw(rows, "A title")
    low, high = figure.axes[0].get_ylim()
    assert sum(low <= tick <= high for tick in figure.axes[0].get_yticks()) >= 1
    assert "D = 64, 10 classes, float32" in figure.texts[1].get_text()
    figure = draw([*rows, replace(OURS, n=9, classes=1000)], "A title")
    assert "D = 64, 10 to 1,000 classes" in figure.texts[1].get_text()


def test_competitors_differ_in_colour() -> None:
    rows = [replace(NAIVE, provider=name) for name in "abcdefghij"]
    colours = {line.get_color() for line in draw([*rows, OURS], "A title").axes[0].lines}
    assert len(colours) == 11
