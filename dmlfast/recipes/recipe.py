"""Recipes: YAML files beside this module, each checked when it is read."""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmlfast.errors import UserError, unknown_name
from dmlfast.text import counted
from dmlfast.training.config import FIELDS, TrainConfig, check_settings, option_name, read_yaml

FOLDER = Path(__file__).parent
METRIC = re.compile(
    r"(recall|hit|cmc)_at_[1-9]\d*|map_at_r|r_precision|nmi|nmi_geometric|ami|f1|top_[15]"
    r"|(class_average|many_shot|medium_shot|few_shot)_top_1"
)
TYPE_NAMES = {str: "a string", int: "a whole number", dict: "keys and values", list: "a list"}
RECIPE_KEYS = {"title": str, "paper": str, "settings": dict}
MORE_RECIPE_KEYS = {"give": dict, "doubtful": dict, "targets": list}
TARGET_KEYS = {"source": str, "backbone": str, "crop": str, "embedding-dim": int, "metrics": dict}
MORE_TARGET_KEYS = {"note": str}
IRRELEVANT = {"recipe", "seed", "compile"}  # to what results are compared with


@dataclass(frozen=True)
class Target:
    """What one source reports, and what it was measured with.

    Attributes:
        source: where the numbers stand.
        backbone: the source's network, in its words.
        crop: what part of the images it was shown.
        embedding_dim: width of its embedding.
        metrics: shares in [0, 1] by the names that `dmlfast eval --json` has.
        note: what to be careful with.
    """

    source: str
    backbone: str
    crop: str
    embedding_dim: int
    metrics: dict[str, float]
    note: str = ""

    def to_plain(self) -> dict[str, Any]:
        """The target as `check_targets` takes it."""
        values = {option_name(name): value for name, value in dataclasses.asdict(self).items()}
        return {name: value for name, value in values.items() if value != ""}

    def __str__(self) -> str:
        parts = [
            self.source,
            f"backbone {self.backbone}",
            counted(self.embedding_dim, "dimension"),
            f"crop {self.crop}",
            self.note,
        ]
        return "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class Recipe:
    """A paper's settings.

    Attributes:
        name: what `dmlfast train -c` calls it; the path of a file that is not packaged.
        title: a line on what it is.
        paper: where it is from.
        settings: values by the names of `TrainConfig`'s fields.
        give: what the user has to give besides, by field name, and what for.
        doubtful: why a value may not be the paper's, by field name.
        targets: what was published.
    """

    name: str
    title: str
    paper: str
    settings: dict[str, Any]
    give: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()

    @property
    def config(self) -> TrainConfig:
        """The settings of a run by this recipe alone."""
        return TrainConfig(**self.settings, recipe=self.name)

    def missing(self, config: TrainConfig) -> list[str]:
        """What the user should have given and has not, a line each."""
        return [
            f"{option_name(name)} not given: {why}"
            for name, why in self.give.items()
            if getattr(config, name) in (None, "none")
        ]

    def differences(self, config: TrainConfig) -> list[str]:
        """Where settings are not the recipe's, of those that results depend on, a line each."""
        own, found = self.config, []
        for name, rules in FIELDS.items():
            length = name == "max_steps" or (name == "epochs" and own.max_steps is None)
            resumable = rules.metadata["resumable"] and not length
            before, now = getattr(own, name), getattr(config, name)
            if before != now and not resumable and name not in self.give.keys() | IRRELEVANT:
                found.append(f"{option_name(name)} {_shown(now)}, not {_shown(before)}")
        return [*found, *self.missing(config)]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return "none" if value in (None, "") else f"{value}"


def recipe_names() -> list[str]:
    """The names of the packaged recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, or in the file at that path.

    Raises:
        UserError: for an unknown name, and for a file that cannot be read or is no recipe; the line
            names the file and the key.
    """
    path = _path(name)
    return _check_recipe(read_yaml(path), name, path)


def load_settings(name: str) -> dict[str, Any]:
    """The settings, by field name, that `dmlfast train -c NAME` begins with.

    They are those of a recipe, by name or path, or of a YAML file that holds nothing else, such as
    a run's `args.yaml`. If such a file names a recipe, that recipe's settings stand in for those
    that it does not give. `recipe` says which it was.

    Raises:
        UserError: as `load_recipe` does.
    """
    path = _path(name)
    content = read_yaml(path)
    if "settings" in content:
        recipe = _check_recipe(content, name, path)
        return recipe.settings | {"recipe": recipe.name}
    settings = check_settings(content, str(path))
    base = settings.get("recipe")
    return load_recipe(base).settings | settings if base else settings


def _path(name: str) -> Path:
    """The file of a packaged recipe, or the one that the name is the path of."""
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    path = Path(name)
    if not path.suffix and os.sep not in name and not path.is_file():
        raise unknown_name("recipe", name, recipe_names())
    return path


def _check_recipe(content: Mapping[Any, Any], name: str, path: Path) -> Recipe:
    where = path.name if path.parent == FOLDER else str(path)
    if content and all(str(key).replace("-", "_") in FIELDS for key in content):
        raise UserError(
            f"{where} holds only settings, for `dmlfast train -c`; a recipe has a title, a paper"
            " and settings"
        )
    values = _check_keys(content, where, RECIPE_KEYS, MORE_RECIPE_KEYS)
    settings = check_settings(values["settings"], f"{where}: settings")
    if "recipe" in settings:
        raise UserError(f"{where}: settings: 'recipe' does not belong in a recipe")
    reasons = {
        key: _check_reasons(values.get(key, {}), f"{where}: {key}") for key in ("give", "doubtful")
    }
    try:
        TrainConfig(**settings)
    except UserError as error:
        raise UserError(f"{where}: settings: {error}") from None
    return Recipe(
        name=name if path.parent == FOLDER else str(path.resolve()),
        title=values["title"],
        paper=values["paper"],
        settings=settings,
        targets=check_targets(values.get("targets", []), where),
        **reasons,
    )


def _check_reasons(content: Mapping[Any, Any], where: str) -> dict[str, str]:
    """Texts by field name."""
    reasons = {}
    for key, text in content.items():
        name = str(key).replace("-", "_")
        if name not in FIELDS:
            raise _unknown_key(where, str(key), map(option_name, FIELDS))
        if not isinstance(text, str):
            raise UserError(f"{where}: {key} must be a string, not {text!r}")
        reasons[name] = text
    return reasons


def check_targets(content: Sequence[Any], where: str) -> tuple[Target, ...]:
    """The targets in what was read from a file; a `UserError` begins with `where`."""
    targets = []
    for number, item in enumerate(content, start=1):
        place = f"{where}: target {number}"
        if not isinstance(item, dict):
            raise UserError(f"{place} must be keys and values, not {item!r}")
        values = _check_keys(item, place, TARGET_KEYS, MORE_TARGET_KEYS)
        for name, value in values["metrics"].items():
            if not METRIC.fullmatch(str(name)):
                raise UserError(f"{place}: unknown metric '{name}': give one such as recall_at_1")
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise UserError(f"{place}: {name} must be a fraction from 0 to 1, not {value!r}")
        targets.append(Target(**{key.replace("-", "_"): value for key, value in values.items()}))
    return tuple(targets)


def _check_keys(
    content: Mapping[Any, Any],
    where: str,
    required: Mapping[str, type],
    optional: Mapping[str, type],
) -> dict[str, Any]:
    """The content, which holds all of the required keys and no other ones, each in its type."""
    types = {**required, **optional}
    for key, value in content.items():
        if key not in types:
            raise _unknown_key(where, str(key), types)
        if type(value) is not types[key]:
            raise UserError(f"{where}: {key} must be {TYPE_NAMES[types[key]]}, not {value!r}")
    for key in required:
        if key not in content:
            raise UserError(f"{where}: '{key}' is missing")
    return dict(content)


def _unknown_key(where: str, key: str, known: Any) -> UserError:
    close = difflib.get_close_matches(key, list(known), n=1)
    return UserError(
        f"{where}: unknown key '{key}'" + (f": did you mean '{close[0]}'?" if close else "")
    )
