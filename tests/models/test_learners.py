import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.errors import UserError
from dmlfast.models import create_model, load_model, save_model
from dmlfast.ops.boosted import score_weights

IMAGES = torch.randint(0, 256, (5, 1, 32, 32), generator=torch.Generator().manual_seed(0))
IMAGES = IMAGES.to(torch.uint8)


def model_of(**options):
    torch.manual_seed(0)
    return create_model("convnet", embedding_dim=9, **options).eval()


@pytest.mark.parametrize("weighting", ["paper", "released"])
@pytest.mark.parametrize("head", ["linear", "layer-norm"])
def test_inner_products_are_the_weighted_cosines_of_the_learners(head, weighting):
    plain = model_of(head=head)(IMAGES)
    embeddings = model_of(head=head, groups=(2, 3, 4), weighting=weighting)(IMAGES)
    parts = [F.normalize(part) for part in plain.split((2, 3, 4), 1)]
    weights = score_weights((2, 3, 4), weighting)
    expected = sum(w * part @ part.T for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(embeddings @ embeddings.T, expected)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("head", ["linear", "layer-norm"])
def test_the_linear_layer_makes_embeddings_of_the_features(head):
    model = model_of(head=head)
    embeddings, features = model(IMAGES, with_features=True)
    layer = model.head[-1] if head == "layer-norm" else model.head
    assert model.embedding_weight is layer.weight
    torch.testing.assert_close(F.linear(features, layer.weight, layer.bias), embeddings)
    assert torch.equal(embeddings, model(IMAGES))


def test_a_head_without_a_layer_has_no_weights():
    width = model_of()(IMAGES, with_features=True)[1].shape[1]
    model = create_model("convnet", embedding_dim=width, head="layer-norm")
    with pytest.raises(UserError, match="the head has no linear layer"):
        model.embedding_weight  # noqa: B018


def test_learners_are_saved_with_the_model(tmp_path):
    model = model_of(groups=(2, 7), weighting="released")
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.spec["groups"], loaded.spec["weighting"]) == ([2, 7], "released")
    assert torch.equal(loaded.eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize("head", ["linear", "layer-norm"])
def test_one_learner_embeds_alone_at_length_1(head):
    plain = model_of(head=head)(IMAGES)
    model = model_of(head=head, groups=(2, 3, 4))
    for learner, part in enumerate(plain.split((2, 3, 4), 1), start=1):
        model.choose_learners(learner=learner)
        torch.testing.assert_close(model(IMAGES), F.normalize(part))
    model.choose_learners()
    assert model(IMAGES).shape == (5, 9)


def test_learners_are_weighed_otherwise():
    model = model_of(groups=(2, 3, 4))
    model.choose_learners("released")
    assert torch.equal(model(IMAGES), model_of(groups=(2, 3, 4), weighting="released")(IMAGES))


def test_learners_that_cannot_be_chosen():
    with pytest.raises(UserError, match="the network has no learners"):
        model_of().choose_learners(learner=1)
    with pytest.raises(UserError, match="the network has no learners"):
        model_of().choose_learners("paper")
    model = model_of(groups=(2, 7))
    for learner in (0, 3):
        with pytest.raises(UserError, match=f"no learner {learner}: its learners are 1 to 2"):
            model.choose_learners(learner=learner)
    with pytest.raises(UserError, match="unknown weighting 'best'"):
        model.choose_learners("best")


def test_groups_that_cannot_be():
    with pytest.raises(UserError, match="do not add up to embedding_dim, 9"):
        model_of(groups=(2, 3))
    with pytest.raises(UserError, match="unknown weighting 'best'"):
        model_of(groups=(2, 7), weighting="best")
