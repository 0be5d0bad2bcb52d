"""`dmlfast recipes`: the papers' settings by name, and what was published with them."""

import json
from collections.abc import Iterator
from typing import Any

import click
from dmlfast.cli.card import metric_name, percent, target_lines

from dmlfast.recipes import Recipe, load_recipe, recipe_names
from dmlfast.text import columns, counted
from dmlfast.training.config import option_name

COLUMNS = ("name", "data set", "loss", "backbone", "length", "targets")


@click.command("recipes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the recipes, or show the settings and targets of one.

    NAME is the name of a recipe, or the path of a file that holds one. `dmlfast train -c NAME`
    trains with it. Where published results differ, all of them are given as targets.
    """
    recipes = [load_recipe(known) for known in ([name] if name else recipe_names())]
    if as_json:
        values = [plain(recipe) for recipe in recipes]
        click.echo(json.dumps(values[0] if name else values, indent=2))
    else:
        click.echo("\n".join(details(recipes[0]) if name else table(recipes)))


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON has it, in the keys of its file."""

    def options(values: dict[str, Any]) -> dict[str, Any]:
        return {option_name(name): value for name, value in values.items()}

    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "settings": options(recipe.settings),
        "give": options(recipe.give),
        "doubtful": options(recipe.doubtful),
        "targets": [target.to_plain() for target in recipe.targets],
    }


def table(recipes: list[Recipe]) -> Iterator[str]:
    """A line for each recipe."""
    yield from columns([COLUMNS, *map(_row, recipes)])
    yield ""
    yield "dmlfast recipes NAME shows one; dmlfast train -c NAME --data-dir DIR trains with it"


def _row(recipe: Recipe) -> tuple[str, ...]:
    config = recipe.config
    steps, epochs = config.max_steps, config.epochs
    length = counted(steps, "step") if steps else counted(epochs, "epoch")
    key = next((key for target in recipe.targets for key in target.metrics), "")
    values = [percent(target.metrics[key]) for target in recipe.targets if key in target.metrics]
    targets = f"{metric_name(key)} {', '.join(values)} %" if values else "none"
    return recipe.name, config.dataset, config.loss, config.backbone, length, targets


def details(recipe: Recipe) -> Iterator[str]:
    """All of a recipe."""
    yield f"{recipe.name}: {recipe.title}"
    yield recipe.paper
    yield from ("", "settings")
    for name, value in recipe.settings.items():
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
        mark = "doubtful" if name in recipe.doubtful else ""
        yield f"  {option_name(name):24}{shown:15} {mark}".rstrip()
    for title, reasons in (("also needed", recipe.give), ("doubtful", recipe.doubtful)):
        if reasons:
            yield from ("", title)
            yield from (f"  {option_name(name)}: {why}" for name, why in reasons.items())
    if recipe.targets:
        yield from ("", "targets", *target_lines(recipe.targets, values=True))
    given = "".join(f" --{option_name(name)} {option_name(name).upper()}" for name in recipe.give)
    yield from ("", f"dmlfast train -c {recipe.name} --data-dir DIR{given}")
