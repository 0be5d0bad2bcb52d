import numpy as np
import pytest

from dmlfast.errors import UserError
from dmlfast.ops.boosted import group_sizes, score_weights
from dmlfast.ops.boosted.learners import PUBLISHED
from dmlfast.retrieval import Features, learner_correlation, learners_of

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6)).astype(np.float32)
LABELS = np.arange(40) // 4


def features(**attributes) -> Features:
    return Features(
        X, LABELS, attributes={"groups": [1, 2, 3], "group_weights": [1.0], **attributes}
    )


def test_each_learner_has_its_own_components():
    learners = learners_of(features(model="m"))
    assert [learner.dimension for learner in learners] == [1, 2, 3]
    assert np.array_equal(np.concatenate([each.embeddings for each in learners], 1), X)
    assert all(each.attributes == {"model": "m"} for each in learners)
    assert "normalized" not in learners_of(features(normalized=True))[0].attributes


def test_correlation_is_that_of_numpy():
    found = np.abs(np.corrcoef(X.T))
    between = [*found[0, 1:], *found[1:3, 3:].ravel()]
    assert learner_correlation(features()) == pytest.approx(np.mean(between), abs=1e-12)
    alike = np.repeat(X[:, :1], 6, 1) * np.array([1, -2, 3, 4, 5, 6], dtype=np.float32)
    assert learner_correlation(
        Features(alike, LABELS, attributes={"groups": [1, 2, 3]})
    ) == pytest.approx(1)
    alike[:, 5] = 0  # says nothing
    assert learner_correlation(
        Features(alike, LABELS, attributes={"groups": [1, 2, 3]})
    ) == pytest.approx(1)
    assert np.isnan(learner_correlation(features(groups=[6])))
    alike[:, 1:3] = 1  # so does none of two learners
    alike[:, 3:] = 0
    assert np.isnan(learner_correlation(Features(alike, LABELS, attributes={"groups": [1, 2, 3]})))


def test_what_has_no_learners():
    for given in (features(groups=None), Features(X, LABELS), features().binarized()):
        with pytest.raises(UserError, match="has no learners: only a run with"):
            learners_of(given)
    with pytest.raises(UserError, match=r"groups \[1, 2\] do not add up to 6 dimensions"):
        learners_of(features(groups=[1, 2]))


@pytest.mark.parametrize(
    ("dim", "learners", "expected"),
    [
        (512, 3, (96, 160, 256)),
        (1024, 6, (50, 96, 148, 196, 242, 292)),
        (60, 3, (10, 20, 30)),
        (7, 2, (2, 5)),
        (5, 1, (5,)),
        (3, 3, (1, 1, 1)),
        (5, 4, (1, 1, 1, 2)),
        (11, 5, (1, 1, 2, 3, 4)),
        *[(*key, sizes) for key, sizes in PUBLISHED.items()],
    ],
)
def test_sizes_as_published_or_by_rule(dim, learners, expected):
    assert group_sizes(dim, learners) == expected
    assert sum(group_sizes(dim, learners)) == dim


def test_sizes_come_close_to_those_published():
    for (dim, learners), sizes in {
        (512, 3): (96, 160, 256),
        (1024, 6): (50, 96, 148, 196, 242, 292),
    }.items():
        ends = [round(dim * m * (m + 1) / (learners * (learners + 1))) for m in range(learners + 1)]
        assert np.abs(np.diff(ends) - sizes).max() <= 11


@pytest.mark.parametrize("learners", range(1, 46))
def test_any_number_of_learners_has_components(learners):
    for dim in (learners, learners + 1, 64, 512):
        if dim >= learners:
            sizes = group_sizes(dim, learners)
            assert (len(sizes), sum(sizes)) == (learners, dim)
            assert min(sizes) >= 1


def test_too_many_learners():
    with pytest.raises(ValueError, match="3 components are too few for 4 learners"):
        group_sizes(3, 4)


def test_weights_of_scores():
    assert score_weights((96, 160, 256)) == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    found = score_weights((96, 160, 256), "released")
    assert found == pytest.approx([0.092, 0.255, 0.653], abs=5e-4)
    with pytest.raises(ValueError, match="weighting must be one of paper, released, not 'best'"):
        score_weights((2, 3), "best")
