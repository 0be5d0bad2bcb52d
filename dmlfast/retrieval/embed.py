"""From images to embeddings, batch by batch."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dmlfast.data.loading import Batch, Images, load_rows
from dmlfast.errors import UserError
from dmlfast.models import EmbeddingModel
from dmlfast.ops.boosted import score_weights
from dmlfast.retrieval.pair_scorer import PairScorer
from dmlfast.retrieval.store import FeatureWriter


class RawPixels(nn.Module):
    """Embeds an image as its own pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C * H * W) float32 in [0, 1]."""
        return images.flatten(1).float() / 255


def embed_batches(
    model: nn.Module,
    dataset: Images,
    *,
    batch_size: int = 256,
    batches: Iterable[Batch] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Yields embeddings (B, D) float32, labels (B,) int64 and paths (B,), in the data set's order.

    The model is in eval mode while a batch goes through it, and then again in the mode it was in.

    Args:
        model: (B, C, H, W) uint8 -> (B, D), on `device`.
        dataset: its images, in its order.
        batch_size: images that go through the model at a time.
        batches: the images and labels as `dmlfast.data.loading.load_rows` gives them; by default
            they are loaded here, `batch_size` at a time.
        device: where the model is.
    """
    start = 0
    for images, labels in load_rows(dataset, batch_size) if batches is None else batches:
        end = start + len(labels)
        paths = [dataset.paths[row] for row in range(start, end)]
        yield _embed_images(model, images, device), labels.numpy(), paths
        start = end


def _embed_images(model: nn.Module, images: Tensor, device: torch.device | str) -> np.ndarray:
    training = model.training
    model.eval()
    with torch.inference_mode():
        embeddings = model(images.to(device, non_blocking=True)).float().cpu()
    model.train(training)
    return embeddings.numpy()


def embed(
    model: nn.Module,
    dataset: Images,
    path: str | Path,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    normalize: bool = False,
    binary: bool = False,
    keep_float: bool = False,
    attributes: Mapping[str, Any] | None = None,
    scorer: PairScorer | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> int:
    """Streams a data set through a model into an embedding file, and returns the number of images.

    Args:
        model: (B, C, H, W) uint8 -> (B, D), on `device`.
        dataset: its images, in its order.
        path: the HDF5 file, which appears when it is whole.
        batch_size: images that go through the model, and are in memory, at a time.
        workers: processes that make images of pictures; data sets in memory need none.
        device: where the model is.
        dtype: "float32" or "float16", of the embeddings in the file.
        normalize: scale every embedding to length 1.
        binary: store only the signs of the embeddings, as bits; the two above do not matter then.
        keep_float: store the embeddings beside their signs.
        attributes: where the embeddings come from.
        scorer: the metric unit that was trained along, to be stored with them.
        overwrite: replace `path` if it exists.
        progress: show a bar on stderr.

    Raises:
        UserError: where the data set is empty or the file cannot be written.
    """
    if not len(dataset):
        raise UserError(f"the {dataset.split} split of {dataset.name} is empty")
    roles, done = getattr(dataset, "role", None), 0
    spec = getattr(model, "spec", {})
    learners = _learners(model)
    one_image, _ = dataset.take([0])
    writer = FeatureWriter(
        path,
        dimension=_embed_images(model, one_image, device).shape[1],
        normalized=bool(normalize or spec.get("normalize") or learners),
        distance="hamming" if binary else "euclidean",
        dtype=dtype,
        class_names=dataset.class_names,
        attributes={
            "dataset": dataset.name,
            "split": dataset.split,
            **learners,
            **(attributes or {}),
        },
        scorer=scorer,
        keep_float=keep_float,
        overwrite=overwrite,
    )
    bar = tqdm(total=len(dataset), unit="image", leave=False, nrows=24, disable=not progress)
    with writer, bar:
        batches = load_rows(
            dataset,
            batch_size,
            workers=workers,
            pin_memory=torch.device(device).type == "cuda",
        )
        for embeddings, labels, paths in embed_batches(
            model, dataset, batches=batches, device=device
        ):
            if normalize:
                embeddings = nn.functional.normalize(torch.from_numpy(embeddings)).numpy()
            rows = slice(done, done + len(labels))
            writer.append(embeddings, labels, paths, None if roles is None else roles[rows])
            done += len(labels)
            bar.update(len(labels))
    return len(dataset)


def _learners(model: nn.Module) -> dict[str, Any]:
    """Which learners make the embeddings, as attributes; with any, embeddings have length 1."""
    if not isinstance(model, EmbeddingModel) or not model.spec["groups"]:
        return {}
    if model.learner:
        return {"learner": model.learner}
    groups, weighting = model.spec["groups"], model.weighting
    weights = score_weights(groups, weighting)
    return {"groups": groups, "weighting": weighting, "group_weights": weights}
