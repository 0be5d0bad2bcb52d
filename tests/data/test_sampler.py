"""Class-balanced batches."""

import re
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from dmlfast.data import ClassBalancedSampler, HardNeighbourSampler, PairSampler
from dmlfast.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(30) * 7 - 50, 5))


def test_a_batch_is_balanced():
    sampler = ClassBalancedSampler(LABELS, 24, 3, seed=0)
    for step in range(50):
        batch = sampler.batch(step)
        assert batch.shape == (24,)
        assert batch.dtype == np.int64
        classes = LABELS[batch].reshape(8, 3)
        assert (classes == classes[:, :1]).all()
        assert len(np.unique(classes[:, 0])) == 8
        assert len(np.unique(batch)) == 24


def test_a_batch_depends_on_seed_and_step_alone():
    sampler = ClassBalancedSampler(LABELS, 24, 3, seed=5)
    forwards = [sampler.batch(step) for step in range(40)]
    again = ClassBalancedSampler(LABELS, 24, 3, seed=5)
    backwards = [again.batch(step) for step in reversed(range(40))][::-1]
    assert np.array_equal(forwards, backwards)
    assert len({batch.tobytes() for batch in forwards}) == 40
    other = ClassBalancedSampler(LABELS, 24, 3, seed=6)
    assert not np.array_equal(forwards[0], other.batch(0))


def test_every_class_has_its_turn_in_an_epoch():
    sampler = ClassBalancedSampler(LABELS, 24, 3, seed=0)
    assert sampler.steps_per_epoch == 4
    orders = []
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        classes = np.concatenate([LABELS[sampler.batch(step)][::3] for step in steps])
        assert set(classes) == set(LABELS)
        assert np.array_equal(classes[30:], classes[:2])
        orders.append(classes.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_all_images_are_drawn_equally_often():
    sampler = ClassBalancedSampler(LABELS, 60, 2, seed=1)
    drawn = np.concatenate([sampler.batch(step) for step in range(2000)])
    expected = 2000 * 60 / len(LABELS)
    counts = np.bincount(drawn, minlength=len(LABELS))
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_all_pairs_of_a_class_are_drawn_equally_often():
    labels = np.zeros(4, dtype=np.int64)
    sampler = ClassBalancedSampler(labels, 2, 2, seed=0)
    pairs = np.sort([sampler.batch(step) for step in range(6000)], axis=1)
    _, counts = np.unique(pairs, axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.abs(counts - 1000).max() < 150


def test_a_small_class_is_drawn_with_replacement():
    labels = np.array([0] * 10 + [1] + [2] * 2)
    sampler = ClassBalancedSampler(labels, 9, 3, seed=0)
    drawn = set()
    for step in range(50):
        batch = sampler.batch(step)
        assert sorted(labels[batch]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert len(set(batch[labels[batch] == 0])) == 3
        drawn.update(batch.tolist())
    assert drawn == set(range(13))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shards_join_to_the_whole_batch(world_size):
    sampler = ClassBalancedSampler(LABELS, 24, 3, seed=0)
    shards = [sampler.shard(rank, world_size) for rank in range(world_size)]
    for step in (0, 3, 100):
        parts = [shard.batch(step) for shard in shards]
        assert {len(part) for part in parts} == {24 // world_size}
        assert np.array_equal(np.concatenate(parts), sampler.batch(step))
    assert shards[0].steps_per_epoch == sampler.steps_per_epoch


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    images_per_class=st.integers(1, 15),
    num_classes=st.integers(1, 20),
    seed=st.integers(0, 2**63),
    step=st.integers(0, 2**40),
)
def test_any_labels(sizes, images_per_class, num_classes, seed, step):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    batch_size = images_per_class * num_classes
    if batch_size > len(labels) or num_classes > len(sizes):
        with pytest.raises(UserError) as error:
            ClassBalancedSampler(labels, batch_size, images_per_class, seed)
        if hint := re.search(r"try --batch-size (\d+)(, or more|$)", str(error.value)):
            ClassBalancedSampler(labels, int(hint[1]), images_per_class, seed)
        else:
            assert images_per_class > len(labels)
        return
    batch = ClassBalancedSampler(labels, batch_size, images_per_class, seed).batch(step)
    rows = batch.reshape(num_classes, images_per_class)
    classes = labels[rows]
    assert (classes == classes[:, :1]).all()
    assert len(set(classes[:, 0].tolist())) == num_classes
    for row, label in zip(rows, classes[:, 0], strict=True):
        assert len(set(row.tolist())) == images_per_class or sizes[label] < images_per_class


@pytest.mark.parametrize(
    ("batch_size", "images_per_class", "message"),
    [
        (
            200,
            4,
            "a batch size of 200 is more than the 150 images there are: try --batch-size 120",
        ),
        (24, 5, "a batch size of 24 is not a multiple of images per class, 5"),
        (0, 4, "a batch size of 0 is not a multiple of images per class, 4"),
        (-4, 4, "a batch size of -4 is not a multiple of images per class, 4"),
        (
            124,
            4,
            "a batch size of 124 with 4 images per class needs 31 classes, and there are 30: "
            "try --batch-size 120, or more --images-per-class",
        ),
        (24, 0, "images per class must be at least 1, not 0"),
    ],
)
def test_sizes_that_do_not_fit(batch_size, images_per_class, message):
    with pytest.raises(UserError) as error:
        ClassBalancedSampler(LABELS, batch_size, images_per_class, seed=0)
    assert str(error.value) == message


def test_other_wrong_arguments():
    with pytest.raises(UserError, match="the seed must be at least 0, not -1"):
        ClassBalancedSampler(LABELS, 24, 4, seed=-1)
    with pytest.raises(UserError, match="a batch size of 4 is more than the 0 images there are"):
        ClassBalancedSampler(np.array([], dtype=np.int64), 4, 4, seed=0)
    sampler = ClassBalancedSampler(LABELS, 24, 4, seed=0)
    with pytest.raises(
        UserError, match="a batch size of 24 cannot be divided evenly among 5 processes"
    ):
        sampler.shard(0, 5)
    with pytest.raises(UserError, match="there is no rank 2 among 2 processes"):
        sampler.shard(2, 2)


def test_positive_pairs():
    assert ClassBalancedSampler(LABELS, 24, 4, seed=0).has_positive_pairs
    assert not ClassBalancedSampler(LABELS, 24, 1, seed=0).has_positive_pairs
    assert not ClassBalancedSampler(np.arange(50), 24, 4, seed=0).has_positive_pairs


def test_speed():
    labels = np.repeat(np.arange(2000), 9)
    sampler = ClassBalancedSampler(labels, 256, 4, seed=0)
    seconds = []
    for step in range(300):
        start = time.perf_counter()
        sampler.batch(step)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3e-3


def test_a_loader_of_torch_goes_through_epochs():
    sampler = ClassBalancedSampler(LABELS, 24, 3, seed=0)
    loader = DataLoader(TensorDataset(torch.arange(len(LABELS))), batch_sampler=sampler)
    assert len(loader) == len(sampler) == sampler.steps_per_epoch == 4
    for epoch in (0, 1, 7):
        if epoch == 7:
            sampler.set_epoch(7)
        rows = [batch.tolist() for (batch,) in loader]
        assert rows == [sampler.batch(4 * epoch + k).tolist() for k in range(4)]


@pytest.mark.parametrize(
    "make",
    [
        lambda labels: ClassBalancedSampler(labels, 24, 3, seed=0),
        lambda labels: PairSampler(labels, 24, seed=0),
        lambda labels: HardNeighbourSampler(labels, 24, candidates=2, seed=0),
    ],
)
def test_labels_of_another_shape_are_refused(make):
    with pytest.raises(ValueError, match=r"labels must have shape \(N,\), not \(150, 1\)"):
        make(LABELS[:, None])
