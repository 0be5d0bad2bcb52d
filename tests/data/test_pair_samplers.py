"""Batches of random pairs, and of positive pairs with candidates for their neighbours."""

from collections import Counter

import numpy as np
import pytest

from dmlfast.data import ClassBalancedSampler, HardNeighbourSampler, PairSampler
from dmlfast.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(30) * 7 - 50, 5))
UNEQUAL = np.array([3, 9, 3, 4, 9, 9])  # classes of 2, 1 and 3 images, not in order


def pairs_of(sampler: PairSampler, steps: int) -> np.ndarray:
    return np.concatenate([sampler.batch(step).reshape(-1, 2) for step in range(steps)])


def assert_equally_likely(counts: Counter, outcomes: list, total: int) -> None:
    assert counts.keys() == set(outcomes)
    share = 1 / len(outcomes)
    tolerance = 5 * np.sqrt(total * share * (1 - share))
    for outcome in outcomes:
        assert abs(counts[outcome] - total * share) < tolerance, outcome


def test_half_of_the_pairs_are_positive():
    batch = PairSampler(LABELS, 64, seed=0).batch(0)
    assert batch.shape == (64,)
    assert batch.dtype == np.int64
    pairs = pairs_of(PairSampler(LABELS, 64, seed=0), 500)
    positive = LABELS[pairs[:, 0]] == LABELS[pairs[:, 1]]
    assert abs(positive.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(pairs))
    per_batch = positive.reshape(500, 32).sum(axis=1)
    assert per_batch.var() == pytest.approx(32 / 4, rel=0.25)


def test_all_positive_pairs_and_all_images_with_themselves_are_equally_likely():
    pairs = np.sort(pairs_of(PairSampler(UNEQUAL, 200, seed=3), 200), axis=1)
    positive = pairs[UNEQUAL[pairs[:, 0]] == UNEQUAL[pairs[:, 1]]]
    outcomes = [
        (i, j) for i in range(6) for j in range(i, 6) if UNEQUAL[i] == UNEQUAL[j]
    ]  # 3 + 1 + 6
    assert len(outcomes) == 10
    assert_equally_likely(Counter(map(tuple, positive.tolist())), outcomes, len(positive))


def test_a_negative_pair_is_an_image_and_one_of_another_class():
    pairs = pairs_of(PairSampler(UNEQUAL, 200, seed=4), 300)
    negative = pairs[UNEQUAL[pairs[:, 0]] != UNEQUAL[pairs[:, 1]]]
    for image in range(6):
        others = negative[negative[:, 0] == image, 1]
        assert abs(len(others) - len(negative) / 6) < 5 * np.sqrt(len(negative) / 6)
        outcomes = np.flatnonzero(UNEQUAL[image] != UNEQUAL).tolist()
        assert_equally_likely(Counter(others.tolist()), outcomes, len(others))


def test_hard_neighbours_start_from_pairs_of_two_images_all_equally_likely():
    sampler = HardNeighbourSampler(UNEQUAL, 4, 1, seed=0)
    groups = np.concatenate([sampler.batch(step).reshape(-1, 4) for step in range(4000)])
    pairs = np.sort(groups[:, :2], axis=1)
    outcomes = [(0, 2), (1, 4), (1, 5), (4, 5)]
    assert_equally_likely(Counter(map(tuple, pairs.tolist())), outcomes, len(pairs))
    assert_equally_likely(Counter(groups[:, 2].tolist()), list(range(6)), len(groups))
    assert (groups[:, 2] != groups[:, 3]).all()


def test_groups_of_a_pair_and_candidates_that_all_differ():
    sampler = HardNeighbourSampler(LABELS, 24, 3, seed=0)
    assert (sampler.group, sampler.rows) == (8, 48)
    for step in range(50):
        groups = sampler.batch(step).reshape(6, 8)
        labels = LABELS[groups[:, :2]]
        assert (labels[:, 0] == labels[:, 1]).all()
        assert (groups[:, 0] != groups[:, 1]).all()
        assert len(np.unique(groups[:, 2:])) == 36


SAMPLERS = {
    "pairs": lambda seed: PairSampler(LABELS, 24, seed),
    "hard-neighbours": lambda seed: HardNeighbourSampler(LABELS, 24, 4, seed),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_batch_depends_on_seed_and_step_alone(make):
    forwards = [make(5).batch(step) for step in range(40)]
    again = make(5)
    assert np.array_equal(forwards, [again.batch(step) for step in reversed(range(40))][::-1])
    assert len({batch.tobytes() for batch in forwards}) == 40
    assert not np.array_equal(forwards[0], make(6).batch(0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_shards_join_to_the_whole_batch(make, world_size):
    sampler = make(0)
    shards = [sampler.shard(rank, world_size) for rank in range(world_size)]
    for step in (0, 3, 100):
        parts = [shard.batch(step) for shard in shards]
        assert {len(part) for part in parts} == {sampler.rows // world_size}
        assert np.array_equal(np.concatenate(parts), sampler.batch(step))
    assert shards[-1].steps_per_epoch == sampler.steps_per_epoch == 7  # 150 images, 24 a step


def test_groups_are_not_parted():
    assert PairSampler(LABELS, 24, 0).shard(0, 4).batch(0).shape == (6,)
    with pytest.raises(
        UserError, match="a batch size of 24 cannot be divided evenly among 4 processes"
    ):
        HardNeighbourSampler(LABELS, 24, 4, 0).shard(0, 4)


def test_class_aware_sampling_of_a_long_tail_and_pairs_that_follow_it():
    labels = np.repeat(np.arange(8), [64, 32, 16, 8, 4, 2, 1, 1])
    balanced = ClassBalancedSampler(labels, 16, 2, seed=0)
    drawn = np.concatenate([labels[balanced.batch(step)] for step in range(100)])
    assert np.bincount(drawn).tolist() == [200] * 8
    pairs = pairs_of(PairSampler(labels, 64, seed=0), 300)
    positive = labels[pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]], 0]]
    sizes = np.bincount(labels)
    expected = sizes * (sizes + 1) / (sizes * (sizes + 1)).sum()
    assert np.bincount(positive) / len(positive) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PairSampler(LABELS, 7, 0),
            "sampler pairs needs a batch size that is a multiple of 2, not 7",
        ),
        (
            lambda: PairSampler(LABELS, 0, 0),
            "sampler pairs needs a batch size that is a multiple of 2, not 0",
        ),
        (
            lambda: PairSampler(np.zeros(9, dtype=np.int64), 4, 0),
            "sampler pairs needs images of at least two classes",
        ),
        (lambda: PairSampler(LABELS, 4, -1), "the seed must be at least 0, not -1"),
        (
            lambda: HardNeighbourSampler(LABELS, 10, 4, 0),
            "sampler hard-neighbours needs a batch size that is a multiple of 4, not 10",
        ),
        (
            lambda: HardNeighbourSampler(np.arange(9), 4, 1, 0),
            "sampler hard-neighbours needs a class of at least two images",
        ),
        (lambda: HardNeighbourSampler(LABELS, 4, 0, 0), "candidates must be at least 1, not 0"),
        (
            lambda: HardNeighbourSampler(LABELS, 100, 4, 0),
            "a batch size of 100 with 4 candidates for each neighbour needs 200 images, and there "
            "are 150: try fewer --candidates",
        ),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message
