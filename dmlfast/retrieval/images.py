"""The images behind the rows of an embedding file, and the embedding of an image from outside."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn.functional import normalize

from dmlfast.data import AnyDataset, create_dataset, create_transform, parse_options
from dmlfast.errors import UserError
from dmlfast.models import load_model
from dmlfast.retrieval.codes import binarize
from dmlfast.retrieval.drawing import ImageOf
from dmlfast.retrieval.features import Features
from dmlfast.text import counted


def image_source(*files: Features, data_dir: str | None = None) -> ImageOf:
    """What gives the image of a path in `files`, from the data sets that these are of.

    Raises UserError where a file does not say which data set that is, the data set cannot be had or
    does not hold every path.
    """
    places: dict[str, tuple[AnyDataset, int]] = {}
    for features in files:
        for part in _data_set(features, data_dir):
            places |= {path: (part, i) for i, path in enumerate(part.paths)}
        missing = [path for path in features.paths if path not in places]
        if missing or len(features.paths) != len(features):
            example = f", such as '{missing[0]}'" if missing else ""
            of = f"of its {counted(len(features), 'path')}"
            lost = counted(len(missing), f"{of} is", f"{of} are")
            raise UserError(
                f"no images for {features.source}: {lost} not in {features.title}{example}"
            )

    def image_of(path: str) -> Image.Image:
        part, i = places[path]
        return part.image(i)

    return image_of


def embed_picture(
    features: Features, picture: str | Path, *, invert: bool = False, data_dir: str | None = None
) -> np.ndarray:
    """Embeds an image file with the network that made `features`.

    Returns (1, D) float32, or where `features` are sign bits those of it, (1, ceil(D / 8)) uint8.

    The picture becomes an image as those of the data set did: by the network's transform, or else
    scaled to fit the data set's image size, the rest filled with black. `invert` swaps dark and
    light before that. Raises UserError where the picture cannot be read, or where the network is
    missing or not the one that made the embeddings.
    """
    image = open_picture(picture)
    checkpoint = features.checkpoint_folder()
    model = load_model(checkpoint)
    made = features.attributes
    model.choose_learners(made.get("weighting"), made.get("learner"))
    if model.spec["transform"]:
        image = image.convert("RGB")
        transform = create_transform(**model.spec["transform"])
        pixels = transform(ImageOps.invert(image) if invert else image)
    else:
        pixels = _fitted(image, _data_set(features, data_dir)[0], invert)
    images = torch.from_numpy(np.array(pixels))[None].permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        embedding = model(images)
    if made.get("normalized"):
        embedding = normalize(embedding)
    if embedding.shape[1] != features.dimension:
        raise UserError(
            f"{checkpoint} makes {counted(embedding.shape[1], 'dimension')}, but"
            f" {features.source} has {features.dimension}"
        )
    if not embedding.isfinite().all():
        raise UserError(f"{checkpoint} produces NaN or infinity for {picture}")
    result: np.ndarray = binarize(embedding) if features.binary else embedding.float().numpy()
    return result


def _fitted(image: Image.Image, dataset: AnyDataset, invert: bool) -> np.ndarray:
    """The picture as an image of the data set's size, (H, W, C) uint8."""
    image = image.convert("L" if dataset.channels == 1 else "RGB")
    image = ImageOps.invert(image) if invert else image
    height, width = dataset.image_size
    if image.size != (width, height):
        image = ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, dataset.channels)


def open_picture(path: str | Path) -> Image.Image:
    """Reads an image file, turned as its camera says."""
    if not str(path):
        raise UserError("the name of the image is empty")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image") from None
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason}") from error


def _data_set(features: Features, data_dir: str | None) -> list[AnyDataset]:
    """The data set's parts that together hold the split; how "val" was cut off does not matter."""
    name, split = features.attributes.get("dataset"), features.attributes.get("split")
    if not name or not split:
        raise UserError(f"{features.source} does not say which data set and split it is from")
    known = features.attributes.get("data_dir")
    if not data_dir and known and not Path(known).exists():
        raise UserError(
            f"{features.source} has its images in {known}, which does not exist: give --data-dir"
        )
    splits = [split] if split == "test" else ["train", "val"]
    options = parse_options(features.attributes.get("dataset_options"))
    return [create_dataset(str(name), part, data_dir or known, **options) for part in splits]
