"""What a run by a recipe is compared with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmlfast.errors import UserError
from dmlfast.recipes.recipe import Target, check_targets, load_recipe
from dmlfast.training import RunFolder


@dataclass(frozen=True)
class Comparison:
    """A recipe's targets, and where a run was not by the recipe.

    Attributes:
        recipe: its name.
        targets: what was published.
        differences: a line on each.
    """

    recipe: str
    targets: tuple[Target, ...]
    differences: tuple[str, ...]

    @classmethod
    def of(cls, run: RunFolder, more: tuple[str, ...] = ()) -> "Comparison | None":
        """That of a run, with more differences than its settings tell; None without a recipe.

        Of a file that is no recipe any more there are no targets, and its error is a difference.
        """
        config = run.config
        if config.recipe is None:
            return None
        try:
            recipe = load_recipe(config.recipe)
        except UserError as error:
            return cls(config.recipe, (), (str(error), *more))
        last = run.checkpoint("last")
        total = last.state.get("total_steps", last.step)
        stopped = (f"stopped after step {last.step} of {total}",) if last.step < total else ()
        return cls(recipe.name, recipe.targets, (*recipe.differences(config), *stopped, *more))

    def to_plain(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {
            "name": self.recipe,
            "targets": [target.to_plain() for target in self.targets],
            "differences": list(self.differences),
        }

    def to_attributes(self) -> dict[str, Any]:
        """It as attributes of an embedding file."""
        return {
            "recipe": self.recipe,
            "recipe_targets": json.dumps([target.to_plain() for target in self.targets]),
            "recipe_differences": list(self.differences) or None,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], source: str) -> "Comparison | None":
        """That in an embedding file, `source`; None where there is none.

        Raises a `UserError` where it is not as it was written.
        """
        if "recipe_targets" not in attributes:
            return None
        try:
            targets = json.loads(attributes["recipe_targets"])
            differences = tuple(map(str, attributes.get("recipe_differences", ())))
            if not isinstance(targets, list):
                raise TypeError
        except (ValueError, TypeError):
            raise UserError(f"{source}: its recipe_targets are not as they were written") from None
        return cls(str(attributes.get("recipe")), check_targets(targets, source), differences)
