"""`digits`: the 1,797 handwritten digits that scikit-learn ships, 8 x 8, 10 classes."""

import numpy as np
import torch

from dmlfast.data.dataset import Dataset
from dmlfast.errors import UserError


def load_digits(data_dir: str | None = None) -> Dataset:
    """All digits, white on black, not split. They need no `data_dir`, and take none."""
    if data_dir is not None:
        raise UserError("digits come with scikit-learn: leave the data set's folder (data-dir) out")
    from sklearn import datasets  # slow to import

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Dataset(
        name="digits",
        split="all",
        images=torch.from_numpy(images[:, None]),
        labels=digits.target.astype(np.int64),
        paths=[f"{label}/{i:04d}" for i, label in enumerate(digits.target)],
        class_names=[str(label) for label in range(10)],
    )
