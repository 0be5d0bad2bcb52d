"""The report of `dmlfast eval` as a person reads it."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dmlfast.cli.card import NAMES, card_lines, comparison_lines, target_text

from dmlfast.text import counted

if TYPE_CHECKING:
    from dmlfast.cli.evaluation import Evaluation, Files, Report

    from dmlfast.retrieval import Features

CLUSTERING = ("nmi", "nmi_geometric", "ami", "f1")


def report_lines(found: "Evaluation") -> list[str]:
    """What was compared how, the numbers in groups, and what to be careful with."""
    columns = [found.report] if found.binary is None else [found.report, found.binary]
    lines = [*_card(found.files, found.protocol, columns), "", *_table(found, columns)]
    if found.comparison is not None:
        lines += ["", *comparison_lines(found.comparison)]
    lines += _warnings(found.files.features, found.report)
    if found.learners:
        lines += ["", *_learners(found.learners)]
    if found.files.train is not None:
        lines.append(f"classes shared with {found.files.train.source}: {found.shared}")
    return lines


def _table(found: "Evaluation", columns: list["Report"]) -> list[str]:
    """The measures in groups, a line each; the sign bits' stand in a column of their own."""
    groups = {title: rows for title, rows in _groups(found.report).items() if rows}
    keys = [key for rows in groups.values() for key in rows.values()]
    spread_wide = max(len(_spread(column, key)) for column in columns for key in keys)
    heads: dict[str, list[str]] = {}
    if found.binary is not None:
        heads[""] = [found.files.features.embeddings.dtype.name, "binary"]
        heads["bytes per image"] = [f"{column['bytes_per_image']:,}" for column in columns]
    names = [name for rows in groups.values() for name in rows]
    wide = max(map(len, [*heads, *names]))
    lines = []
    for name, values in heads.items():
        cells = _cells(values, ["", ""], spread_wide)
        lines.append(f"{name:{wide}}    {cells}".rstrip())
    for title, rows in groups.items():
        lines += ["", title] if lines else [title]
        for name, key in rows.items():
            values = [_percent(column[key]) for column in columns]
            spreads = [_spread(column, key) for column in columns]
            cells = _cells(values, spreads, spread_wide)
            target = target_text(found.comparison, key)
            lines.append(f"  {name:{wide}}  {cells}   {target}".rstrip())
    return lines


def _learners(alone: "Report") -> Iterator[str]:
    """What each learner retrieves alone, and how alike they are."""
    yield "learners alone"
    for number, report in enumerate(alone["learners"], start=1):
        named = _numbered(report, "recall_at_", "recall at") | _numbered(
            report, "cmc_at_", "CMC at"
        )
        named |= _named(report, ("map_at_r",))
        values = [f"{name} {_percent(report[key])}" for name, key in named.items()]
        yield f"  {number}, {counted(report['dimensions'], 'dimension')}:  {', '.join(values)}"
    if len(alone["learners"]) > 1:
        yield f"  mean absolute correlation between learners {alone['learner_correlation']:.3f}"


def _card(files: "Files", protocol: str, columns: list["Report"]) -> Iterator[str]:
    features, gallery = files.features, files.gallery
    known, report = features.attributes, columns[0]
    among = counted(report["gallery"], "image") if "gallery" in report else ""
    if "train_images" in report:
        classes = counted(report["train_classes"], "class", "classes")
        among = f"{classes} of {counted(report['train_images'], 'training image')}"
    if "candidates" in report:
        among = f"{report['candidates']:,} {report['against']}"
    yield (
        f"{features.title}: {counted(report['queries'], 'query', 'queries')}"
        f" of {counted(report['classes'], 'class', 'classes')} among"
        f" {among}" + ("" if gallery is None else f" of {gallery.title}")
    )
    size = f", {counted(report['bytes_per_image'], 'byte')} per image"
    ranked_by = report.get("ranked_by", "distance")
    by = f"{features.distance} distance"
    if ranked_by != "distance":
        by = f"ranked by {ranked_by} score"
    yield (
        f"{known.get('model', 'unknown model')},"
        f" {counted(features.dimension, 'sign bit' if features.binary else 'dimension')}, {by}"
        + (size if len(columns) == 1 else "; sign bits, hamming distance")
    )
    yield from card_lines(known)
    yield f"protocol {protocol}, checkpoint {_selection(known)}"


def _selection(known: dict[str, Any]) -> str:
    selected_on = known.get("selected_on")
    if selected_on == "test":
        return "SELECTED ON TEST"
    if selected_on:
        return f"selected on {selected_on}"
    return "of the last step" if known.get("selection") == "last step" else "selection unknown"


def _groups(report: "Report") -> dict[str, dict[str, str]]:
    """Titles of groups, each with its rows: what to call a value, and its key in the report."""
    interval = ", 95 % interval" if report.get("intervals") else ""
    groups: dict[str, dict[str, str]] = {
        f"retrieval{interval}": _numbered(report, "recall_at_", "recall at")
        | _named(report, ("map_at_r", "r_precision")),
        f"identification, mean of {counted(report.get('draws', 0), 'draw')}": _numbered(
            report, "cmc_at_", "CMC at"
        ),
        f"zero-shot{interval}": _numbered(report, "hit_at_", "hit at"),
        f"classification{interval}": _named(report, ("top_1", "top_5")),
    }
    runs = report.get("clustering_runs", 1)
    title = f"clustering by k-means ({report.get('kmeans', 'no rows')}, {counted(runs, 'run')})"
    if report.get("ranked_by", "distance") != "distance":
        title += f", by {report['distance']} distance"
    groups[title] = _named(report, CLUSTERING)
    if "shots" in report:
        few, many = report["shots"]
        shots = {
            "many_shot": f"more than {many} images",
            "medium_shot": f"{few} to {many} images",
            "few_shot": f"fewer than {few} images",
        }
        rows = _named(report, ("class_average_top_1",))
        for name, text in shots.items():
            classes = counted(report[f"{name}_classes"], "class", "classes")
            rows[f"{text}, {classes}"] = f"{name}_top_1"
        groups["top-1 averaged over classes, by their training images"] = rows
    return groups


def _named(report: "Report", keys: tuple[str, ...]) -> dict[str, str]:
    return {NAMES[key]: key for key in keys if key in report}


def _numbered(report: "Report", prefix: str, name: str) -> dict[str, str]:
    ends = [key.removeprefix(prefix) for key in report if key.startswith(prefix)]
    return {f"{name} {end}": prefix + end for end in ends if end.isdigit()}


def _spread(report: "Report", key: str) -> str:
    if f"{key}_std" in report:
        return f"+- {_percent(report[f'{key}_std'])}"
    ends = report.get("intervals", {}).get(key, ())
    return "" if any(map(math.isnan, ends)) else " to ".join(map(_percent, ends))


def _warnings(features: "Features", report: "Report") -> Iterator[str]:
    if report.get("lone_queries"):
        lone = counted(report["lone_queries"], "query", "queries")
        yield from ("", f"left out: {lone} with nothing to find")
    if features.attributes.get("selected_on") == "test":
        yield from ("", "The checkpoint was selected on the test classes: compare with care.")


def _cells(values: list[str], spreads: list[str], width: int) -> str:
    """The value and the spread, `width` wide, of each column."""
    pairs = zip(values, spreads, strict=True)
    return "   ".join(f"{value:>8}   {spread:{width}}" for value, spread in pairs)


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.2f} %"
