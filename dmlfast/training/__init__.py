"""Training: the loop, its settings, checkpoints and run folders."""

from dmlfast.training.card import images_card, network_card, training_card
from dmlfast.training.checkpoint import Checkpoint
from dmlfast.training.config import TrainConfig
from dmlfast.training.distributed import is_main_process, resolve_device
from dmlfast.training.interrupt import Interrupted
from dmlfast.training.loop import load_split, seeded_model, train
from dmlfast.training.metric_unit import load_scorer
from dmlfast.training.preparation import image_transform, starting_weights
from dmlfast.training.run_folder import RunFolder, newest_run

__all__ = [
    "Checkpoint",
    "Interrupted",
    "RunFolder",
    "TrainConfig",
    "image_transform",
    "images_card",
    "is_main_process",
    "load_scorer",
    "load_split",
    "network_card",
    "newest_run",
    "resolve_device",
    "seeded_model",
    "starting_weights",
    "train",
    "training_card",
]
