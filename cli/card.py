"""What results are compared by, and with, as a person reads it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlfast.recipes import Comparison, Target

CARD = (  # a line each, of what is known
    ("weights", "pooling", "batch_norm"),
    ("image_size", "crop", "crop_pct", "pictures", "train_crop", "test_crop", "bounding_boxes"),
    (
        *("loss", "margin", "loss_options", "ce_weight"),
        *("batch_size", "sampler", "images_per_class", "candidates", "epochs", "step"),
    ),
    ("trained_with",),
)
NAMES = {
    "map_at_r": "MAP at R",
    "r_precision": "R-precision",
    "nmi": "NMI",
    "nmi_geometric": "NMI, geometric",
    "ami": "AMI",
    "f1": "F1",
    "top_1": "top-1",
    "top_5": "top-5",
    "class_average_top_1": "class average",
    "cmc": "CMC",
}


def card_lines(known: Mapping[str, Any]) -> Iterator[str]:
    """What a file's attributes, or a run, say of how the results came about."""
    for names in CARD:
        details = [f"{name.replace('_', ' ')} {known[name]}" for name in names if name in known]
        if details:
            yield "; ".join(details)


def metric_name(key: str) -> str:
    """A metric of a report as people call it."""
    kind, at, number = key.partition("_at_")
    if at and number.isdigit():
        return f"{NAMES.get(kind, kind)} at {number}"
    return NAMES.get(key, key.replace("_", " "))


def percent(value: float) -> str:
    """A published share in per cent, to the one or two digits that papers give."""
    return f"{100 * value:.2f}".removesuffix("0")


def target_text(comparison: "Comparison | None", key: str) -> str:
    """What was published for a metric, each value with the number of its source."""
    values = [
        f"{percent(target.metrics[key])} % [{number}]"
        for number, target in enumerate(comparison.targets if comparison else (), start=1)
        if key in target.metrics
    ]
    return f"target {', '.join(values)}" if values else ""


def comparison_lines(comparison: "Comparison", values: bool = False) -> Iterator[str]:
    """The sources of the targets, with their values or without, and what the run did otherwise."""
    yield f"targets of recipe {comparison.recipe}, on the test images:"
    yield from target_lines(comparison.targets, values) if comparison.targets else ["  none"]
    if comparison.differences:
        yield "NOT BY THE RECIPE:"
        for line in comparison.differences:
            yield f"  {line}"
    else:
        yield "settings as in the recipe"


def target_lines(targets: "Sequence[Target]", values: bool) -> Iterator[str]:
    """The numbered sources of targets, with their values or without."""
    for number, target in enumerate(targets, start=1):
        yield f"  [{number}] {target}"
        if values:
            metrics = target.metrics.items()
            numbers = [f"{metric_name(key)} {percent(value)} %" for key, value in metrics]
            yield "      " + ", ".join(numbers)
