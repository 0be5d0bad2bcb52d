"""PKU VehicleID: vehicles; test lists of several sizes."""

import re

import numpy as np

from dmlfast.data.images import ImageDataset
from dmlfast.data.listing import (
    TEST,
    TRAIN,
    Listing,
    check_count,
    find_file,
    find_root,
    listed_paths,
    names_in,
    number_classes,
    read_columns,
)
from dmlfast.errors import unknown_name


def load_vehicleid(data_dir: str | None, *, subset: str | int = "800") -> Listing:
    """Reads `train_list.txt` and `test_list_{subset}.txt`.

    The published counts differ from those of the files, so other counts are only warned of.
    """
    root = find_root("vehicleid", data_dir, ["train_test_split"], "VehicleID_V1.0")
    lists = root / "train_test_split"
    known = [re.fullmatch(r"test_list_(\d+)\.txt", name) for name in names_in(lists)]
    subsets = [match[1] for match in known if match]
    subset = str(subset)
    if subset not in subsets:
        raise unknown_name("subset of vehicleid", subset, subsets)
    files = [
        find_file("vehicleid", lists, f"{part}.txt")
        for part in ("train_list", f"test_list_{subset}")
    ]
    train, test = (read_columns(file, ["image_id", "vehicle_id"]) for file in files)
    for part, rows, file in (("train", train, files[0]), (subset, test, files[1])):
        check_count("vehicleid", part, np.array(rows[1]), file, warn=True)
    labels, names = number_classes(train[1], test[1])
    dataset = ImageDataset(
        name="vehicleid",
        split="all",
        root=root,
        labels=labels,
        paths=listed_paths(root, [f"image/{id}.jpg" for id in train[0] + test[0]], files[1]),
        class_names=names,
    )
    return Listing(dataset, np.repeat([TRAIN, TEST], [len(train[0]), len(test[0])]))
