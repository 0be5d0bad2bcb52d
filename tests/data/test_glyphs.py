"""The rendered characters, their classes and the file that keeps them."""

import logging

import numpy as np
import pytest
import torch

from dmlfast.data import Dataset, glyphs


@pytest.fixture(scope="module")
def rendered() -> Dataset:
    return glyphs.render_glyphs()


@pytest.fixture
def tiny() -> Dataset:
    """A small stand-in for what takes seconds to render."""
    images = torch.arange(2 * 32 * 32, dtype=torch.int64).remainder(256).to(torch.uint8)
    return Dataset(
        "glyphs", "all", images.view(2, 1, 32, 32), np.array([0, 1]), ["a/x", "b/x"], ["A", "Б"]
    )


@pytest.fixture
def renders(tiny, monkeypatch) -> list[int]:
    """Grows by one entry with each rendering."""
    calls: list[int] = []

    def render() -> Dataset:
        calls.append(1)
        return tiny

    monkeypatch.setattr(glyphs, "render_glyphs", render)
    return calls


def load(data_dir) -> Dataset:
    """What a new process would load."""
    glyphs._load.cache_clear()
    dataset = glyphs.load_glyphs(str(data_dir))
    glyphs._load.cache_clear()
    return dataset


def same(a: Dataset, b: Dataset) -> bool:
    return (
        torch.equal(a.images, b.images)
        and np.array_equal(a.labels, b.labels)
        and (a.paths, a.class_names) == (b.paths, b.class_names)
    )


def test_counts(rendered):
    sizes = np.bincount(rendered.labels)
    assert 3000 <= len(sizes) == len(rendered.class_names) <= 4000
    assert 30_000 <= len(rendered) <= 36_000
    assert sizes.min() >= 4
    assert rendered.images.shape == (len(rendered), 1, 32, 32)
    assert rendered.images.dtype == torch.uint8
    assert rendered.labels.dtype == np.int64
    assert len(set(rendered.paths)) == len(rendered.paths) == len(rendered)


def test_rendering_is_deterministic(rendered):
    assert same(glyphs.render_glyphs(), rendered)


def test_characters_have_the_right_classes(rendered):
    label = dict(zip(rendered.paths, rendered.labels.tolist(), strict=True))
    name = rendered.class_names
    assert name[label["U+0041/DejaVuSans"]] == "LATIN CAPITAL LETTER A"
    assert name[label["U+0041/cmr10"]] == "LATIN CAPITAL LETTER A"
    assert label["U+0041/DejaVuSans"] == label["U+0041/STIXGeneralBolIta"]
    assert label["U+0041/DejaVuSans"] != label["U+0042/DejaVuSans"] != label["U+0061/DejaVuSans"]
    # Greek and Cyrillic A look like Latin A, so what is left of them is in its class.
    assert "GREEK CAPITAL LETTER ALPHA" not in name
    assert "CYRILLIC CAPITAL LETTER A" not in name
    assert "GREEK CAPITAL LETTER OMEGA" in name
    assert not any(path.startswith("U+E0") for path in rendered.paths)
    assert not any("cm" in path and path.startswith("U+00A") for path in rendered.paths)


def test_classes_are_in_code_point_order(rendered):
    first = {}
    for path, label in zip(rendered.paths, rendered.labels.tolist(), strict=True):
        code = int(path[2:].partition("/")[0], 16)
        first[label] = min(code, first.get(label, code))
    assert list(first) == sorted(first)
    assert list(first.values()) == sorted(first.values())


def test_no_face_draws_two_classes_alike(rendered):
    seen = {}
    for i, path in enumerate(rendered.paths):
        drawing = (path.partition("/")[2], rendered.images[i].numpy().tobytes())
        assert seen.setdefault(drawing, rendered.labels[i]) == rendered.labels[i]


def test_images_of_a_class_differ(rendered):
    images = {
        (label, image.tobytes())
        for label, image in zip(rendered.labels.tolist(), rendered.images.numpy(), strict=True)
    }
    assert len(images) == len(rendered)


def test_ink_is_centred_and_whole(rendered):
    ink = rendered.images[:, 0].numpy() > 0
    edge = ink.copy()
    edge[:, 1:-1, 1:-1] = False
    assert not edge.any()
    for axis in (1, 2):
        line = ink.any(axis=axis)
        before, after = line.argmax(axis=1), line[:, ::-1].argmax(axis=1)
        assert line.any(axis=1).all()
        assert np.abs(before - after).max() <= 1
    assert (rendered.images.amax(dim=(1, 2, 3)) > 200).float().mean() > 0.95


def test_no_image_is_the_box_of_a_missing_character(rendered):
    images = {image.tobytes() for image in rendered.images.numpy()}
    for face in glyphs.FACES:
        file = f"{glyphs.matplotlib.get_data_path()}/fonts/ttf/{face}.ttf"
        font = glyphs.ImageFont.truetype(
            file, glyphs.FONT_SIZES[0], layout_engine=glyphs.ImageFont.Layout.BASIC
        )
        box = glyphs.draw(chr(0x10FFFF), [font])
        assert box is None or box.tobytes() not in images


def test_merging():
    drawings = {
        1: {"sans": b"A", "serif": b"A'"},
        2: {"sans": b"B", "serif": b"B'"},
        3: {"sans": b"A", "serif": b"C'"},  # like 1 in sans
        4: {"sans": b"D", "serif": b"C'"},  # like 3 in serif, so like 1
        5: {"sans": b"B'", "serif": b"A"},  # alike only across faces
        6: {"mono": b"E"},
        7: {"mono": b"E", "sans": b"B"},  # joins 6 and 2
    }
    assert glyphs.merge_lookalikes(drawings) == {1: 1, 2: 2, 3: 1, 4: 1, 5: 5, 6: 2, 7: 2}


def test_images_are_kept(tmp_path, tiny, renders):
    assert same(load(tmp_path), tiny)
    assert same(load(tmp_path), tiny)
    assert len(renders) == 1
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".npz"


def test_the_default_place_is_the_users_cache(tmp_path, tiny, renders, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load("")
    assert len(list((tmp_path / "xdg" / "dmlfast").glob("glyphs-*.npz"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("")
    assert len(list((tmp_path / "home" / ".cache" / "dmlfast").glob("glyphs-*.npz"))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"not a zip file",
        lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:],
    ],
    ids=["half", "one byte short", "empty", "foreign", "one byte wrong"],
)
def test_a_damaged_file_is_made_anew(tmp_path, tiny, renders, damage):
    load(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert same(load(tmp_path), tiny)
    assert same(load(tmp_path), tiny)
    assert len(renders) == 2


def test_another_matplotlib_has_a_file_of_its_own(tmp_path, renders, monkeypatch):
    load(tmp_path)
    monkeypatch.setattr(glyphs.matplotlib, "__version__", "0.0")
    load(tmp_path)
    assert len(renders) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_place_to_write_there_is_one_warning(tmp_path, tiny, renders, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    glyphs._load.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            glyphs.load_glyphs(str(blocked / "cache"))
    glyphs._load.cache_clear()
    assert len(renders) == 1
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    assert blocked.read_text() == "not a folder"


def test_a_failed_write_leaves_nothing(tmp_path, tiny, renders, monkeypatch):
    def full_disk(file, **arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(glyphs.np, "savez_compressed", full_disk)
    assert same(load(tmp_path), tiny)
    assert list(tmp_path.iterdir()) == []
