"""The settings of a run: one dataclass from which options, YAML keys and `args.yaml` are made."""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dmlfast.data import dataset_names, transform_names
from dmlfast.errors import UserError
from dmlfast.losses import loss_names
from dmlfast.models import HEAD_INITS, HEADS, WEIGHTINGS


def setting(
    default: Any,
    group: str,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float = -math.inf,
    maximum: float = math.inf,
    below: float = math.inf,
    ascending: bool = False,
    only_with: tuple[str, str] | None = None,
    resumable: bool = False,
) -> Any:
    """A field of a settings class: its default, what it means, and which values it takes.

    `ascending` is for several numbers; `only_with` is another field and the value of it without
    which this one does nothing; `resumable` marks what may be another value when a run is resumed.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "group": group,
            "help": help,
            "choices": choices,
            "minimum": minimum,
            "maximum": maximum,
            "below": below,
            "ascending": ascending,
            "only_with": only_with,
            "resumable": resumable,
        },
    )


DATA, MODEL, LOSS = "Data", "Model", "Loss"
RECIPE = "Recipe"
OPTIMISATION, PROGRESS, MACHINE = "Optimisation", "Evaluation and checkpoints", "Machine"
SAMPLERS = ("balanced", "pairs", "hard-neighbours")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on, as plain values.

    A value that a field does not take raises a `UserError`.
    """

    dataset: str = setting("glyphs", DATA, f"Data set to train on: {', '.join(dataset_names())}.")
    data_dir: str | None = setting(
        None, DATA, "Folder with the data set's files, if it has any.", resumable=True
    )
    dataset_options: str | None = setting(
        None, DATA, "Further options of the data set, such as crop=true,subset=1600."
    )
    val_fraction: float = setting(
        0.1, DATA, "Fraction of the training classes held out for validation.", minimum=0, below=1
    )
    batch_size: int = setting(
        256, DATA, "Images per step, in total: the batch is divided among the processes.", minimum=1
    )
    sampler: str = setting(
        "balanced",
        DATA,
        "How the images of a batch are chosen: classes in turn (class-aware sampling), random "
        "positive and negative pairs, or positive pairs with their hard neighbours.",
        choices=SAMPLERS,
    )
    images_per_class: int = setting(
        4,
        DATA,
        "Images of each class in a batch, with --sampler balanced.",
        minimum=1,
        only_with=("sampler", "balanced"),
    )
    candidates: int = setting(
        4,
        DATA,
        "Images compared for each neighbour chosen, with --sampler hard-neighbours.",
        minimum=1,
        maximum=10**6,
        only_with=("sampler", "hard-neighbours"),
    )
    augment: bool = setting(
        True, DATA, "Augment the training images: random crops, mirroring, jitter."
    )
    transform: str = setting(
        "auto",
        DATA,
        "How pictures are resized and cropped: as the backbone's weights expect, or as in a paper.",
        choices=("auto", "none", *transform_names()),
    )
    image_size: int | None = setting(
        None,
        DATA,
        "Height and width of the images in pixels; by default, those of the transform.",
        minimum=1,
        maximum=8192,
    )
    cache_images: str | None = setting(
        None,
        DATA,
        "Folder in which decoded and resized images are cached for reuse.",
        resumable=True,
    )

    backbone: str = setting(
        "convnet",
        MODEL,
        "Network below the embedding layer: convnet, bvlc-googlenet, timm/NAME or "
        "torchvision/NAME.",
    )
    weights: str | None = setting(
        None,
        MODEL,
        "Initial weights of the backbone: a file, default (those of its library) or none; by "
        "default, the library's if it has any.",
    )
    embedding_dim: int = setting(64, MODEL, "Dimension of the embedding.", minimum=1, maximum=65536)
    head: str = setting(
        "linear",
        MODEL,
        "Embedding layer: linear, or layer-norm, which normalises the features first and has no "
        "bias; where --embedding-dim is the backbone's width, it is the normalisation alone.",
        choices=HEADS,
    )
    normalize: bool = setting(
        False, MODEL, "Scale every embedding to length 1, in training and afterwards."
    )
    head_dropout: float = setting(
        0.0,
        MODEL,
        "Fraction of the features dropped before the embedding layer in training.",
        minimum=0,
        below=1,
    )
    learners: int = setting(
        3,
        MODEL,
        "Number of learners that a boosted loss divides the embedding into, their widths as "
        "published or by a rule.",
        minimum=1,
        maximum=1024,
    )
    groups: tuple[int, ...] = setting(
        (), MODEL, "Widths of the learners, such as 96,160,256, instead of --learners."
    )
    weighting: str = setting(
        "paper",
        MODEL,
        "Weight of a learner in the score of a pair: as in the boosted prediction (paper), or by "
        "its squared width (released).",
        choices=WEIGHTINGS,
    )
    head_init: str = setting(
        "torch",
        MODEL,
        "Initialisation of the embedding layer: torch's own, or Caffe's xavier with bias 0.",
        choices=HEAD_INITS,
    )
    freeze_bn: bool = setting(
        False, MODEL, "Freeze the backbone's batch norms: statistics, scales and shifts."
    )

    loss: str = setting("lifted", LOSS, f"Loss to train with: {', '.join(loss_names())}.")
    margin: float | None = setting(
        None, LOSS, "Margin of the loss, if it has one; by default, the loss's own."
    )
    loss_options: str | None = setting(
        None,
        LOSS,
        "Further options of the loss, such as mining=semihard,reduction=mean.",
    )
    ce_weight: float = setting(
        0.0,
        LOSS,
        "Weight of the cross-entropy of a linear classifier trained alongside on the embeddings; 0 "
        "for no classifier.",
        minimum=0,
        maximum=10**6,
    )
    impl: str = setting(
        "auto", LOSS, "Implementation of the loss: auto, reference, cpu, ...", resumable=True
    )

    epochs: int = setting(
        54,
        OPTIMISATION,
        "Length of the run in passes over the classes; with samplers of pairs, in passes over as "
        "many images as there are.",
        minimum=1,
        maximum=10**6,
        resumable=True,
    )
    max_steps: int | None = setting(
        None,
        OPTIMISATION,
        "Length of the run in steps, instead of --epochs.",
        minimum=1,
        maximum=10**9,
        resumable=True,
    )
    optimizer: str = setting(
        "adamw", OPTIMISATION, "Optimiser, as implemented in torch.", choices=("adamw", "sgd")
    )
    momentum: float = setting(
        0.9, OPTIMISATION, "Momentum of SGD.", minimum=0, below=1, only_with=("optimizer", "sgd")
    )
    lr: float = setting(6e-3, OPTIMISATION, "Peak learning rate.", minimum=0, maximum=1000)
    loss_lr: float | None = setting(
        None,
        OPTIMISATION,
        "Peak learning rate of the loss's own weights and the classifier's; by default, --lr.",
        minimum=0,
        maximum=1000,
    )
    backbone_lr_multiplier: float = setting(
        1.0,
        OPTIMISATION,
        "Learning rate of the backbone as a multiple of --lr; 0 freezes it.",
        minimum=0,
        maximum=1000,
    )
    head_lr_multiplier: float = setting(
        1.0,
        OPTIMISATION,
        "Learning rate of the embedding layer as a multiple of --lr.",
        minimum=0,
        maximum=1000,
    )
    bias_lr_multiplier: float = setting(
        1.0,
        OPTIMISATION,
        "Learning rate of biases as a multiple of that of their layer.",
        minimum=0,
        maximum=1000,
    )
    weight_decay: float = setting(
        1e-2,
        OPTIMISATION,
        "Weight decay, applied to matrices and filters only.",
        minimum=0,
        maximum=1000,
    )
    loss_weight_decay: float = setting(
        0.0,
        OPTIMISATION,
        "Weight decay of the loss's own weights and the classifier's.",
        minimum=0,
        maximum=1000,
    )
    head_steps: int = setting(
        0,
        OPTIMISATION,
        "Extra steps at the start that train only the embedding layer and the loss's weights, at "
        "their full rates.",
        minimum=0,
        maximum=10**9,
    )
    warmup_steps: int = setting(
        100, OPTIMISATION, "Steps of linear warm-up, after which the schedule begins.", minimum=0
    )
    schedule: str = setting(
        "cosine",
        OPTIMISATION,
        "How the learning rates fall: by a cosine to zero, by steps at --milestones or not at all.",
        choices=("cosine", "step", "constant"),
    )
    milestones: tuple[int, ...] = setting(
        (),
        OPTIMISATION,
        "Steps at which --schedule step multiplies the rates by --gamma.",
        ascending=True,
    )
    gamma: float = setting(
        0.1,
        OPTIMISATION,
        "Factor of --schedule step at each milestone.",
        minimum=0,
        maximum=1,
        only_with=("schedule", "step"),
    )
    seed: int = setting(
        0, OPTIMISATION, "Seed for everything random.", minimum=0, maximum=2**63 - 1
    )

    select_on: str = setting(
        "val",
        PROGRESS,
        "Split on which the best checkpoint is chosen; with `test`, the results say so.",
        choices=("val", "test"),
    )
    eval_interval: int = setting(
        200, PROGRESS, "Steps between evaluations.", minimum=1, resumable=True
    )
    checkpoint_interval: int = setting(
        200, PROGRESS, "Steps between checkpoints.", minimum=1, resumable=True
    )
    keep_checkpoints: int = setting(
        2,
        PROGRESS,
        "Number of newest checkpoints to keep, besides the best.",
        minimum=1,
        resumable=True,
    )
    log_interval: int = setting(
        10, PROGRESS, "Steps between rows of summary.csv.", minimum=1, resumable=True
    )

    device: str = setting(
        "auto", MACHINE, "Device to train on: auto, cpu, cuda or cuda:N.", resumable=True
    )
    precision: str = setting(
        "fp32",
        MACHINE,
        "Precision of the network; the loss always uses fp32.",
        choices=("fp32", "bf16"),
    )
    compile: bool = setting(False, MACHINE, "Compile the network with torch.compile.")
    workers: int = setting(
        0,
        MACHINE,
        "Processes that load images, per training process.",
        minimum=0,
        maximum=1024,
        resumable=True,
    )

    recipe: str | None = setting(
        None, RECIPE, "Recipe that the settings started from: a name, or the path of a file."
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            try:
                value = check_value(field, getattr(self, field.name))
            except ValueError as error:
                raise UserError(f"{option_name(field.name)} {error}") from None
            object.__setattr__(self, field.name, value)
        if self.milestones and self.schedule != "step":
            raise UserError("milestones need schedule step: choose it, or leave milestones out")
        if self.schedule == "step" and not self.milestones:
            raise UserError("schedule step needs milestones, the steps at which the rates fall")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        return self.head_steps + (self.max_steps or self.epochs * steps_per_epoch)

    def with_absolute_folders(self) -> "TrainConfig":
        """The settings as they mean the same wherever they are read."""
        return dataclasses.replace(
            self, data_dir=_absolute(self.data_dir), cache_images=_absolute(self.cache_images)
        )

    def to_yaml(self) -> str:
        """The settings as `-c` reads them."""
        lists = {"milestones": list(self.milestones), "groups": list(self.groups)}
        values = dataclasses.asdict(self) | lists
        return yaml.safe_dump({option_name(name): values[name] for name in values}, sort_keys=False)


def _absolute(folder: str | None) -> str | None:
    return None if folder is None else str(Path(folder).expanduser().absolute())


FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
FIELD_TYPES = typing.get_type_hints(TrainConfig)
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "whole numbers separated by commas",
}


def option_name(name: str) -> str:
    """A field's name as the command line and `args.yaml` spell it."""
    return name.replace("_", "-")


def plain_type(name: str) -> tuple[type, bool]:
    """A field's type without `None`, and whether it can be `None`."""
    hint = FIELD_TYPES[name]
    if isinstance(hint, types.UnionType):
        return typing.get_args(hint)[0], True
    return typing.get_origin(hint) or hint, False


def check_value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """The value in the field's own type; a `ValueError` says what the field takes instead."""
    kind, optional = plain_type(field.name)
    if value is None and optional:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-3 as a text
        except ValueError:
            raise ValueError(f"must be a number, not '{value}'") from None
    if kind is tuple:
        return _whole_numbers(value, field.metadata["ascending"])
    if type(value) is not kind:
        raise ValueError(f"must be {TYPE_NAMES[kind]}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite, not {value}")
    rules = field.metadata
    if rules["choices"] and value not in rules["choices"]:
        raise ValueError(f"must be {' or '.join(rules['choices'])}, not '{value}'")
    if kind in (int, float) and value < rules["minimum"]:
        raise ValueError(f"must be at least {rules['minimum']}, not {value}")
    if kind in (int, float) and value > rules["maximum"]:
        raise ValueError(f"must be at most {rules['maximum']}, not {value}")
    if kind in (int, float) and value >= rules["below"]:
        raise ValueError(f"must be below {rules['below']}, not {value}")
    return value


def _whole_numbers(value: Any, ascending: bool) -> tuple[int, ...]:
    """The numbers in a text such as "15000,18000", in a list, or a single one."""
    if isinstance(value, str):
        words = value.split(",") if value else []
        value = [int(word) if word.strip().isdecimal() else word for word in words]
    numbers = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    numbers = [number.item() if isinstance(number, np.generic) else number for number in numbers]
    whole = all(type(number) is int and number > 0 for number in numbers)
    if not whole or (ascending and numbers != sorted(set(numbers))):
        order = "ascending " if ascending else ""
        raise ValueError(f"must be {order}whole numbers, such as 15000,18000, not {value!r}")
    return tuple(numbers)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a YAML file gives, by field name.

    Keys are spelled as options or as fields. A file that cannot be read, an unknown key or a value
    of the wrong type raises a `UserError` that names the file and the key.
    """
    return check_settings(read_yaml(path), str(path))


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML's own loaders take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for at, key in enumerate(keys):
            if key in keys[:at] and key != "<<":
                raise UserError(f"'{key}' is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """The keys and values of a YAML file, unchecked; a `UserError` says why there are none."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _OnceLoader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a YAML file: it is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"{path} is not a YAML file{where}: {problem}") from None
    if content is None:
        raise UserError(f"{path} is empty: it must hold keys and values, such as `batch-size: 256`")
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, such as `batch-size: 256`")
    return content


def check_settings(content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The settings by field name, each in its type; a `UserError` begins with `where`."""
    settings = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in FIELDS:
            raise UserError(f"{where}: unknown key '{key}'{_suggestion(name)}")
        if name in settings:
            raise UserError(f"{where}: '{key}' is given twice")
        try:
            settings[name] = check_value(FIELDS[name], value)
        except ValueError as error:
            raise UserError(f"{where}: {key} {error}") from None
    return settings


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, FIELDS, n=1)
    return f": did you mean '{option_name(close[0])}'?" if close else ""
