"""Recipes: the settings of papers by name, and what was published with them."""

from dmlfast.recipes.comparison import Comparison
from dmlfast.recipes.recipe import (
    Recipe,
    Target,
    check_targets,
    load_recipe,
    load_settings,
    recipe_names,
)

__all__ = [
    "Comparison",
    "Recipe",
    "Target",
    "check_targets",
    "load_recipe",
    "load_settings",
    "recipe_names",
]
