"""Options made from the fields of a settings class, and help that is grouped like them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from dmlfast.errors import UserError
from dmlfast.losses import takes
from dmlfast.recipes import load_settings
from dmlfast.training.config import (
    FIELDS,
    TrainConfig,
    check_value,
    option_name,
    plain_type,
)

RECIPE = "recipe"
EXCLUDING = (("epochs", "max_steps"), ("learners", "groups"))
OF_LEARNERS = ("learners", "groups", "weighting")  # settings of boosted losses
CLICK_TYPES = {bool: click.BOOL, int: click.INT, float: click.FLOAT, str: click.STRING}


class ConfigFileError(click.ClickException):
    """What is wrong in a configuration file: wrong usage, but not of the command line."""

    exit_code = 2


class SettingType(click.ParamType):
    """Reads a field's value and checks it by the field's own rules."""

    def __init__(self, field: "dataclasses.Field[Any]"):
        self.field = field
        self.kind, _ = plain_type(field.name)
        self.name = "int,..." if self.kind is tuple else self.kind.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value in the field's type; one it does not take is wrong usage."""
        if isinstance(value, str) and self.kind in CLICK_TYPES:
            value = CLICK_TYPES[self.kind].convert(value, param, ctx)
        try:
            return check_value(self.field, value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SettingOption(click.Option):
    """An option that is listed under its field's group."""

    def __init__(self, *args: Any, group: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its own options first and then those of each group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options under the names of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=28)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for every field of `TrainConfig` but the recipe, which -c sets."""
    for field in reversed(dataclasses.fields(TrainConfig)):
        if field.name != RECIPE:
            command = _setting_option(field)(command)
    return command


def _setting_option(field: "dataclasses.Field[Any]") -> Callable[..., Any]:
    is_flag = plain_type(field.name)[0] is bool
    name, choices = option_name(field.name), field.metadata["choices"]
    return click.option(
        f"--{name}/--no-{name}" if is_flag else f"--{name}",
        field.name,
        cls=SettingOption,
        group=field.metadata["group"],
        type=None if is_flag else SettingType(field),
        default=field.default,
        show_default=field.default not in (None, ()),
        metavar=f"[{'|'.join(choices)}]" if choices else None,
        help=field.metadata["help"],
    )


def load_config_file(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    """Makes the settings of a recipe, or of a YAML file, the defaults of the command."""
    if name is not None:
        try:
            ctx.default_map = {**(ctx.default_map or {}), **load_settings(name)}
        except UserError as error:
            raise ConfigFileError(str(error)) from None
    return name


def given_settings(ctx: click.Context, settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that the command line or the configuration file gives."""
    sources = {name: ctx.get_parameter_source(name) for name in FIELDS}
    given = {
        name: settings[name]
        for name, source in sources.items()
        if source in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    }
    typed = _typed(ctx)
    falls = settings["milestones"] or ctx.params["resume"]  # a run has its own
    if "schedule" in typed and settings["schedule"] == "step" and not falls:
        raise click.UsageError(
            "--schedule step needs --milestones, the steps at which the rates fall"
        )
    # What was typed wins over what a file says of the same thing in another setting.
    if "epochs" in typed and "max_steps" not in typed:
        given["max_steps"] = None
    if "schedule" in typed and "milestones" not in typed and settings["schedule"] != "step":
        given["milestones"] = ()
    if "learners" in typed and "groups" not in typed:
        given["groups"] = ()
    if "loss" in typed and "groups" not in typed and not takes(settings["loss"], "groups"):
        given["groups"] = ()
    defaults = ctx.default_map or {}
    return {**given, RECIPE: defaults[RECIPE]} if RECIPE in defaults else given


def refuse_idle(ctx: click.Context, config: TrainConfig) -> None:
    """Raises the wrong usage of what is typed and, as other settings are, does nothing."""
    typed = _typed(ctx)
    for names in EXCLUDING:
        if typed.issuperset(names):
            options = " and ".join(f"--{option_name(name)}" for name in names)
            raise click.UsageError(f"{options} cannot be used together")
    for name in typed:
        other, value = FIELDS[name].metadata["only_with"] or (name, getattr(config, name))
        if getattr(config, other) != value:
            raise click.UsageError(
                f"--{option_name(name)} works only with {other} {value}, not with "
                f"{getattr(config, other)}"
            )
        nothing = name == "groups" and not config.groups
        if name in OF_LEARNERS and not nothing and not takes(config.loss, "groups"):
            raise click.UsageError(
                f"--{option_name(name)} works only with boosted losses, not with {config.loss}"
            )


def _typed(ctx: click.Context) -> set[str]:
    """The settings that the command line gives."""
    return {
        name for name in FIELDS if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
