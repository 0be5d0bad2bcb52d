"""Small trees of pictures in the official layouts of data sets, of any number of classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

IMAGES = 4  # of each class


def write_picture(path: Path, label: int, number: int) -> None:
    """A JPEG whose pattern is its class's, on white, of a shape of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern = np.random.default_rng(label).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    shown = Image.fromarray(pattern).resize((120 + 10 * number, 140), Image.Resampling.NEAREST)
    picture = Image.new("RGB", (200, 160 + 15 * number), "white")
    picture.paste(shown, (20 + number, 10))
    picture.save(path)


def write_lines(path: Path, lines: list[str]) -> None:
    """A text file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_cub200(root: Path, classes: int) -> None:
    """`CUB_200_2011/` with its lists."""
    folder = root / "CUB_200_2011"
    names = [f"{label + 1:03d}.Bird" for label in range(classes)]
    files = [f"{name}/{number}.jpg" for name in names for number in range(IMAGES)]
    for row, file in enumerate(files):
        write_picture(folder / "images" / file, row // IMAGES, row % IMAGES)
    write_lines(folder / "images.txt", [f"{row + 1} {file}" for row, file in enumerate(files)])
    labels = [f"{row + 1} {row // IMAGES + 1}" for row in range(len(files))]
    write_lines(folder / "image_class_labels.txt", labels)
    boxes = [f"{row + 1} 20.0 10.0 120.0 140.0" for row in range(len(files))]
    write_lines(folder / "bounding_boxes.txt", boxes)


def write_cars196(root: Path, classes: int) -> None:
    """The old pack: `cars_annos.mat` and `car_ims/`."""
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class"]
    table = np.empty(classes * IMAGES, dtype=[(name, object) for name in fields])
    for row in range(len(table)):
        path = f"car_ims/{row + 1:06d}.jpg"
        write_picture(root / path, row // IMAGES, row % IMAGES)
        table[row] = (path, 20, 10, 140, 150, row // IMAGES + 1)
    names = np.array([f"Car {label}" for label in range(classes)], dtype=object)
    savemat(root / "cars_annos.mat", {"annotations": table, "class_names": names})


def write_sop(root: Path, classes: int) -> None:
    """`Stanford_Online_Products/` with its two lists."""
    folder, lines = root / "Stanford_Online_Products", []
    for row in range(classes * IMAGES):
        path = f"mug_final/{row}_0.JPG"
        write_picture(folder / path, row // IMAGES, row % IMAGES)
        lines.append(f"{row + 1} {row // IMAGES + 1} 1 {path}")
    half = len(lines) // 2
    for part, rows in (("train", lines[:half]), ("test", lines[half:])):
        header = "image_id class_id super_class_id path"
        write_lines(folder / f"Ebay_{part}.txt", [header, *rows])


def write_inshop(root: Path, classes: int) -> None:
    """`img/` with its list: of the second half of the classes the first image is the query."""
    rows = []
    for row in range(classes * IMAGES):
        label, number = divmod(row, IMAGES)
        path = f"img/WOMEN/Dresses/id_{label:08d}/{number:02d}_1_front.jpg"
        write_picture(root / path, label, number)
        part = "train" if label < classes // 2 else "gallery" if number else "query"
        rows.append(f"{path} id_{label:08d} {part}")
    header = "image_name item_id evaluation_status"
    write_lines(root / "Eval/list_eval_partition.txt", [str(len(rows)), header, *rows])


def write_vehicleid(root: Path, classes: int) -> None:
    """`VehicleID_V1.0/` with the list for training and that of the small gallery."""
    folder = root / "VehicleID_V1.0"
    rows = range(classes * IMAGES)
    for row in rows:
        write_picture(folder / f"image/{row:07d}.jpg", row // IMAGES, row % IMAGES)
    half = len(rows) // 2
    for name, part in (("train_list", rows[:half]), ("test_list_800", rows[half:])):
        lines = [f"{row:07d} {row // IMAGES}" for row in part]
        write_lines(folder / "train_test_split" / f"{name}.txt", lines)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "cub200": write_cub200,
    "cars196": write_cars196,
    "inshop": write_inshop,
    "sop": write_sop,
    "vehicleid": write_vehicleid,
}
