"""Imports of the libraries of the extra `models`, which are optional and slow to import."""

import importlib
import importlib.util
import sys
from types import ModuleType

import torch

from dmlfast.errors import UserError

_ops: list[torch.library.Library] = []  # what is defined here lives as long as its library


def import_timm() -> ModuleType:
    """The package timm; a `UserError` says how to install it where it is missing."""
    try:
        import_torchvision()
    except UserError:
        if importlib.util.find_spec("timm") is None:
            _import("timm")  # of the two that are missing the one that was asked for
        raise
    return _import("timm")


def import_torchvision() -> ModuleType:
    """The package torchvision; a `UserError` says how to install it where it is missing.

    A torchvision built for CUDA does not load its operators beside a torch for the CPU, and is then
    not imported because two of them are unknown. No model and no transform needs them.
    """
    try:
        return _import("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _ops.append(library)
    return _import("torchvision")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"{name} is not installed: pip install 'dmlfast[models]'") from None
