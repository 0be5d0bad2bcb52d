"""Stanford Online Products: 11,318 classes train, 11,316 test, in 12 categories."""

import numpy as np

from dmlfast.data.images import ImageDataset
from dmlfast.data.listing import (
    TEST,
    TRAIN,
    Listing,
    check_count,
    find_file,
    find_root,
    integers,
    listed_paths,
    number_classes,
    read_columns,
)

COLUMNS = ["image_id", "class_id", "super_class_id", "path"]


def load_sop(data_dir: str | None) -> Listing:
    """Reads `Ebay_train.txt` and `Ebay_test.txt`."""
    root = find_root("sop", data_dir, ["Ebay_train.txt"], "Stanford_Online_Products")
    files = [find_file("sop", root, f"Ebay_{part}.txt") for part in ("train", "test")]
    train, test = (read_columns(file, COLUMNS, header=1) for file in files)
    for part, rows, file in (("train", train, files[0]), ("test", test, files[1])):
        check_count("sop", part, np.array(rows[1]), file)
    labels, names = number_classes(train[1], test[1])
    paths = train[3] + test[3]
    supers = integers(train[2] + test[2], "super class id", files[0]) - 1
    category_of = dict(
        zip(supers.tolist(), (path.split("_final/")[0] for path in paths), strict=True)
    )
    dataset = ImageDataset(
        name="sop",
        split="all",
        root=root,
        labels=labels,
        paths=listed_paths(root, paths, files[0]),
        class_names=names,
        categories=supers,
        category_names=[category_of[number] for number in sorted(category_of)],
    )
    return Listing(dataset, np.repeat([TRAIN, TEST], [len(train[0]), len(test[0])]))
