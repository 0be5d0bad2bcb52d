"""What models compute, and what they are made from."""

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.errors import UserError
from dmlfast.models import create_model, model_names


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28), (32, 32), (50, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_size(size, channels):
    model = create_model("convnet", channels=channels, embedding_dim=48)
    embeddings = model(images(4, channels, *size))
    assert embeddings.shape == (4, 48)
    assert embeddings.dtype == torch.float32
    embeddings.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters() if weight.ndim > 1)


def test_bytes_and_floats_are_the_same_images():
    model = create_model("convnet", mean=[0.4], std=[0.2]).eval()
    batch = images(4, 1, 32, 32)
    assert torch.equal(model(batch), model(batch.float() / 255))
    assert torch.equal(model(batch), model((batch.double() / 255).float().double()))


def test_mean_and_std_are_of_each_channel():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    model = create_model("convnet", channels=3, mean=mean, std=std)
    batch = images(2, 3, 8, 8)
    expected = [(batch[:, c] / 255 - mean[c]) / std[c] for c in range(3)]
    assert torch.allclose(model.preprocess(batch), torch.stack(expected, dim=1), atol=1e-6)


def test_embeddings_are_of_unit_length_on_request():
    batch = images(4, 1, 16, 16)
    torch.manual_seed(0)
    free = create_model("convnet").eval()
    torch.manual_seed(0)
    unit = create_model("convnet", normalize=True).eval()
    lengths = free(batch).norm(dim=1, keepdim=True)
    assert (lengths - 1).abs().min() > 0.01
    assert torch.allclose(unit(batch), free(batch) / lengths, atol=1e-6)


def test_the_place_of_a_mark_counts():
    accent = torch.zeros(2, 1, 32, 32)
    accent[0, :, 4:8, 12:20] = 1
    accent[1, :, 24:28, 12:20] = 1
    above, below = create_model("convnet").eval().backbone(accent)
    assert (above - below).norm() > 0.1 * above.norm()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"channels": 3, "embedding_dim": 7, "normalize": True},
        {"channels": 3, "mean": (0.1, 0.2, 0.3), "std": (1, 1, 2)},
        {"widths": (8, 8, 16, 16, 24)},
    ],
)
def test_a_spec_makes_the_same_model(arguments):
    torch.manual_seed(0)
    model = create_model("convnet", **arguments).eval()
    assert json.loads(json.dumps(model.spec)) == model.spec
    torch.manual_seed(0)
    again = create_model(**model.spec).eval()
    assert again.spec == model.spec
    batch = images(3, model.spec["channels"], 32, 32)
    assert torch.equal(model(batch), again(batch))


def test_names():
    assert model_names() == ["bvlc-googlenet", "convnet", "timm/NAME", "torchvision/NAME"]
    with pytest.raises(UserError, match="unknown backbone 'convet': did you mean 'convnet'"):
        create_model("convet")


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": 0},
        {"embedding_dim": 0},
        {"channels": 3, "mean": (0.5, 0.5)},
        {"std": (0.0,)},
        {"widths": (8, 8)},
        {"widths": (8, 8, 0, 8, 8)},
    ],
)
def test_numbers_that_make_no_model(arguments):
    with pytest.raises(UserError) as error:
        create_model("convnet", **arguments)
    assert "\n" not in str(error.value)


def trained_a_step(model):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=1.0)
    model(images(4, 1, 16, 16)).square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_batch_norms(model):
    prefixes = [
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    return {name for name in model.state_dict() if name.startswith(tuple(prefixes))}


def test_frozen_batch_norms_stay_as_they_are():
    model = create_model("convnet")
    everything = set(model.state_dict())
    assert trained_a_step(model) == everything
    model.freeze_batch_norm()
    assert trained_a_step(model) == everything - of_batch_norms(model)
    assert model.training
    assert all(not m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_a_frozen_backbone_stays_as_it_is():
    model = create_model("convnet")
    model.freeze_backbone()
    assert trained_a_step(model) == {"head.weight", "head.bias"}


def test_dropout_is_for_training_alone():
    model = create_model("convnet", dropout=0.5)
    batch = images(4, 1, 16, 16)
    model.freeze_batch_norm()
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))
    assert model.spec["dropout"] == 0.5
    with pytest.raises(UserError, match="dropout must be at least 0 and below 1, not 1"):
        create_model("convnet", dropout=1)


def test_how_the_embedding_layer_starts():
    torch.manual_seed(0)
    plain = create_model("convnet", embedding_dim=64).head
    caffe = create_model("convnet", embedding_dim=64, head_init="caffe").head
    for head, bound in ((plain, 2048**-0.5), (caffe, (3 / 2048) ** 0.5)):
        assert 0.99 * bound < head.weight.abs().max() <= bound
        assert head.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert plain.bias.abs().max() > 0
    assert not caffe.bias.any()
    with pytest.raises(UserError, match="unknown head_init 'cafe': did you mean 'caffe'"):
        create_model("convnet", head_init="cafe")


def test_a_head_that_normalises_the_features():
    torch.manual_seed(0)
    narrow = create_model("convnet", embedding_dim=64, head="layer-norm", normalize=True)
    wide = create_model("convnet", embedding_dim=2048, head="layer-norm")
    assert [name for name, _ in narrow.head.named_parameters()] == ["1.weight"]
    assert not [*wide.head.parameters()]
    batch = images(4, 1, 32, 32)
    for model in (narrow.eval(), wide.eval()):
        features = model.backbone(model.preprocess(batch))
        expected = features - features.mean(1, keepdim=True)
        expected = expected / (features.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        if model is narrow:
            expected = F.normalize(expected @ model.head[1].weight.T)
        torch.testing.assert_close(model(batch), expected)
        assert create_model(**model.spec).spec == model.spec
    assert create_model("convnet").spec["head"] == "linear"
    with pytest.raises(UserError, match="unknown head 'layernorm': did you mean 'layer-norm'"):
        create_model("convnet", head="layernorm")


def test_pooling_and_batch_norm():
    convnet, googlenet = create_model("convnet"), create_model("bvlc-googlenet", 3)
    assert (convnet.pooling, convnet.has_batch_norm) == ("average of each of 4 x 4 cells", True)
    assert (googlenet.pooling, googlenet.has_batch_norm) == ("average", False)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.bool])
def test_images_of_other_integers_are_refused(dtype):
    model = create_model("convnet", embedding_dim=4)
    with pytest.raises(TypeError, match=rf"uint8, or floats in \[0, 1\], not {dtype}"):
        model(torch.zeros(1, 1, 8, 8, dtype=dtype))
