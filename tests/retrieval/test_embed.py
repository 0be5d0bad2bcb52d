import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dmlfast.data import ImageDataset, create_dataset, prepare_images
from dmlfast.data.paths import PathList
from dmlfast.errors import UserError
from dmlfast.models import create_model
from dmlfast.retrieval import load_features
from dmlfast.retrieval.embed import RawPixels, embed, embed_batches


@pytest.fixture(scope="module")
def dataset():
    return create_dataset("digits", split="val")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("convnet", channels=1, embedding_dim=8)


def expected_embeddings(model, dataset):
    with torch.no_grad():
        return model.eval()(dataset.take(range(len(dataset)))[0]).numpy()


def test_rows_are_those_of_the_data_set_in_order(model, dataset, tmp_path):
    path = tmp_path / "f.h5"
    count = embed(model, dataset, path, batch_size=100, attributes={"model": "convnet", "step": 3})
    features = load_features(path)
    assert count == len(dataset) == len(features)
    assert len(dataset) % 100  # the last batch is a part
    np.testing.assert_allclose(
        features.embeddings, expected_embeddings(model, dataset), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(features.labels, dataset.labels)
    assert features.paths == dataset.paths
    assert features.class_names == dataset.class_names
    wanted = {"dataset": "digits", "split": "val", "model": "convnet", "step": 3}
    assert wanted.items() <= features.attributes.items()
    assert not features.attributes["normalized"]


@pytest.mark.parametrize("cached", [False, True])
def test_queries_and_gallery_are_kept_apart(tmp_path, cached):
    sizes = {"a.png": 9, "b.png": 10, "c.png": 8, "d.png": 12, "e.png": 7}
    for path, size in sizes.items():
        Image.new("RGB", (size, size), (size, 0, 0)).save(tmp_path / path)
    role = np.array([1, 2, 2, 1, 2], dtype=np.uint8)
    files = ImageDataset(
        name="pairs",
        split="test",
        root=tmp_path,
        labels=np.array([0, 0, 1, 1, 1]),
        paths=PathList(sizes),
        class_names=["x", "y"],
        role=role,
    )
    folder = tmp_path / "cache" if cached else None
    images = prepare_images(files, {"name": "padded", "size": 8}, cache_dir=folder)
    embed(RawPixels(), images, tmp_path / "f.h5", batch_size=2)
    found = load_features(tmp_path / "f.h5")
    np.testing.assert_array_equal(found.roles, role)
    assert found.paths == list(sizes)


def test_batches_stream_and_leave_the_mode_alone(dataset):
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append((len(images), self.training, torch.is_inference_mode_enabled()))
            return images.flatten(1).float()

    spy = Spy()
    batches = embed_batches(spy, dataset, batch_size=100)
    embeddings, labels, paths = next(batches)
    assert seen == [(100, False, True)]  # nothing beyond the batch that was asked for
    assert spy.training
    assert not torch.is_inference_mode_enabled()
    assert embeddings.shape == (100, 64)
    assert len(labels) == len(paths) == 100


def test_float16_and_unit_length(model, dataset, tmp_path):
    embed(model, dataset, tmp_path / "f.h5", dtype="float16", normalize=True)
    features = load_features(tmp_path / "f.h5")
    assert features.embeddings.dtype == np.float16
    assert features.attributes["normalized"]
    expected = expected_embeddings(model, dataset)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(features.embeddings, expected, atol=1e-3)


def test_a_model_that_normalises_is_stamped(dataset, tmp_path):
    model = create_model("convnet", channels=1, embedding_dim=8, normalize=True)
    embed(model, dataset, tmp_path / "f.h5")
    assert load_features(tmp_path / "f.h5").attributes["normalized"]


def test_raw_pixels(dataset, tmp_path):
    embed(RawPixels(), dataset, tmp_path / "f.h5")
    embeddings = load_features(tmp_path / "f.h5").embeddings
    assert embeddings.shape == (len(dataset), 64)
    np.testing.assert_allclose(embeddings[5], dataset[5][0].flatten().numpy() / 255, atol=1e-7)


def test_what_cannot_be_embedded(model, dataset, tmp_path):
    empty = create_dataset("digits", split="val", val_fraction=0)
    with pytest.raises(UserError, match="the val split of digits is empty"):
        embed(model, empty, tmp_path / "f.h5")
    (tmp_path / "f.h5").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        embed(model, dataset, tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_text() == "mine"
    embed(model, dataset, tmp_path / "f.h5", overwrite=True)
    assert len(load_features(tmp_path / "f.h5")) == len(dataset)


def test_an_interrupted_file_does_not_appear(model, dataset, tmp_path):
    calls = 0

    class Fails(nn.Module):
        def forward(self, images):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return images.flatten(1).float()

    with pytest.raises(KeyboardInterrupt):
        embed(Fails(), dataset, tmp_path / "f.h5", batch_size=100)
    assert list(tmp_path.iterdir()) == []
