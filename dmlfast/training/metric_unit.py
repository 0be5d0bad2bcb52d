"""The metric unit that a run trained along with its network."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from dmlfast.errors import UserError
from dmlfast.losses import PDDMLoss, create_loss, parse_loss_options
from dmlfast.retrieval import PairScorer
from dmlfast.training.checkpoint import LOSS
from dmlfast.training.config import TrainConfig


def load_scorer(folder: str | Path, config: TrainConfig) -> PairScorer | None:
    """The unit in the folder of a checkpoint of a run with these settings.

    None where the run's loss has none; a `UserError` says why it cannot be read.
    """
    if config.loss != "pddm":
        return None
    options = parse_loss_options(config.loss_options)
    loss_fn = create_loss(config.loss, embedding_dim=config.embedding_dim, **options)
    assert isinstance(loss_fn, PDDMLoss)
    path = Path(folder) / LOSS
    within = "loss_fn.unit." if config.ce_weight else "unit."
    try:
        tensors = load_file(path)
        return PairScorer.from_tensors(
            {name: tensors[within + name] for name in loss_fn.unit.state_dict()},
            normalize_inputs=loss_fn.unit.normalize_inputs,
            normalize_embeddings=loss_fn.normalize_embeddings,
        )
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]}: it belongs to another loss") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
