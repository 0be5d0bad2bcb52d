"""GoogLeNet as Caffe has it, and its weights in Caffe's files."""

import h5py
import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from dmlfast.errors import UserError
from dmlfast.models import create_model
from dmlfast.models.caffe import LAYERS
from dmlfast.models.googlenet import BVLCGoogLeNet

FIELD = descriptor_pb2.FieldDescriptorProto


@pytest.fixture(scope="module")
def network() -> BVLCGoogLeNet:
    torch.manual_seed(0)
    return BVLCGoogLeNet().eval()


def blobs(network: BVLCGoogLeNet) -> dict[str, list[np.ndarray]]:
    """The network's tensors as Caffe would have them: by its layers, the first one BGR."""
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    return {
        layer: [tensors[f"{name}.weight"].numpy(), tensors[f"{name}.bias"].numpy()]
        for layer, name in LAYERS.items()
    }


def messages() -> dict[str, type]:
    """The messages of `caffe.proto` that hold weights, with the fields that matter."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    kinds = {"i32": FIELD.TYPE_INT32, "i64": FIELD.TYPE_INT64, "f": FIELD.TYPE_FLOAT}
    kinds |= {"d": FIELD.TYPE_DOUBLE, "s": FIELD.TYPE_STRING}
    layout = {
        "BlobShape": [("dim", 1, "i64*")],
        "BlobProto": [
            *(
                (name, i + 1, "i32")
                for i, name in enumerate(("num", "channels", "height", "width"))
            ),
            ("data", 5, "f*"),
            ("diff", 6, "f*"),
            ("shape", 7, "BlobShape"),
            ("double_data", 8, "d*"),
        ],
        "LayerParameter": [("name", 1, "s"), ("type", 2, "s"), ("blobs", 7, "BlobProto*")],
        "V1LayerParameter": [
            ("bottom", 2, "s"),
            ("name", 4, "s"),
            ("type", 5, "i32"),
            ("blobs", 6, "BlobProto*"),
            ("blobs_lr", 7, "f"),
        ],
        "NetParameter": [
            ("name", 1, "s"),
            ("layers", 2, "V1LayerParameter*"),
            ("force_backward", 5, "i32"),
            ("layer", 100, "LayerParameter*"),
        ],
    }
    for message, fields in layout.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            field = described.field.add(name=name, number=number)
            field.label = FIELD.LABEL_REPEATED if kind.endswith("*") else FIELD.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in kinds:
                field.type = kinds[kind]
                field.options.packed = field.label == FIELD.LABEL_REPEATED
            else:
                field.type, field.type_name = FIELD.TYPE_MESSAGE, f".caffe.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in layout
    }


def write_caffemodel(path, layers: dict[str, list[np.ndarray]], style: str) -> None:
    net = messages()["NetParameter"](name="GoogLeNet", force_backward=1)
    for name, arrays in layers.items():
        layer = (net.layers if style == "v1" else net.layer).add(name=name)
        for array in arrays:
            blob = layer.blobs.add()
            if style == "v1":
                shape = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = shape
            else:
                blob.shape.dim.extend(array.shape)
            (blob.double_data if style == "double" else blob.data).extend(array.ravel().tolist())
    path.write_bytes(net.SerializeToString())


def write(path, network: BVLCGoogLeNet, style: str) -> None:
    layers = blobs(network)
    layers["loss3/classifier"] = [np.zeros((1000, 1024), np.float32), np.zeros(1000, np.float32)]
    if path.suffix == ".npz":
        np.savez(
            path, **{f"{layer}/{i}": a for layer in layers for i, a in enumerate(layers[layer])}
        )
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for layer, arrays in layers.items():
                for i, array in enumerate(arrays):
                    file[f"data/{layer}/{i}"] = array
    else:
        write_caffemodel(path, layers, style)


def test_parameters(network):
    """The reference model's 6,998,552 less 1,025,000 of its classifier."""
    assert sum(weight.numel() for weight in network.parameters()) == 5_973_552
    assert len(LAYERS) == 57
    assert not list(network.buffers())


@pytest.mark.parametrize(("size", "sides"), [(224, (56, 28, 14, 7)), (227, (57, 28, 14, 7))])
def test_shapes(network, size, sides):
    seen = {}
    layers = {"conv2": "conv2", "3b": "inception_3b", "4e": "inception_4e", "5b": "inception_5b"}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, key=key: seen.update({key: tuple(output.shape[1:])})
        )
        for key, name in layers.items()
    ]
    with torch.no_grad():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 1024)
    for handle in handles:
        handle.remove()
    widths = (192, 480, 832, 1024)
    assert list(seen.values()) == [
        (width, side, side) for width, side in zip(widths, sides, strict=True)
    ]


def test_response_normalisation(network):
    """x / (1 + 1e-4 / 5 * (sum of squares over five channels)) ^ 0.75"""
    generator = torch.Generator().manual_seed(0)
    x = 200 * torch.randn(1, 9, 2, 3, dtype=torch.float64, generator=generator)
    expected = torch.empty_like(x)
    for channel in range(9):
        window = x[:, max(0, channel - 2) : channel + 3]
        expected[:, channel] = x[:, channel] / (1 + 1e-4 / 5 * window.square().sum(1)) ** 0.75
    assert torch.allclose(network.norm(x), expected, rtol=1e-12)


@pytest.mark.parametrize("style", ["v1", "v2", "double", "npz", "h5"])
def test_weights_of_caffe(network, tmp_path, style):
    path = tmp_path / f"weights.{style if style in ('npz', 'h5') else 'caffemodel'}"
    write(path, network, style)
    model = create_model("bvlc-googlenet", 3, 8, weights=path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name


def test_rgb_and_its_mean_are_what_caffe_does_to_bgr(network, tmp_path):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=generator)
    model = create_model("bvlc-googlenet", 3, 8).eval()
    model.backbone.load_state_dict(network.state_dict())
    as_in_caffe = BVLCGoogLeNet().eval()
    as_in_caffe.load_state_dict(network.state_dict())
    filters = as_in_caffe.conv1.weight
    filters.data = filters.data.flip(1)
    bgr = images.flip(1).float() - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
    with torch.no_grad():
        expected = as_in_caffe(bgr)
        found = model.backbone(model.preprocess(images))
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert expected.std() > 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.caffemodel", b"\x0a", "is damaged or not a Caffe model"),
        ("w.caffemodel", b"\xa2\x06\x7f", "is damaged or not a Caffe model"),
        ("w.caffemodel", b"", "is not a model of BVLC GoogLeNet: conv1/7x7_s2 and 56 other layers"),
        ("w.npy", b"", "a .npy file of several arrays is a pickle"),
        ("w.npz", b"nothing", "is damaged, or holds more than tensors"),
        ("w.h5", b"nothing", "cannot read"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        create_model("bvlc-googlenet", 3, 8, weights=path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
