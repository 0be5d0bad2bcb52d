"""Caffe's weights of BVLC GoogLeNet, read without Caffe.

A `.caffemodel` is a Protocol Buffers message, of which only the names of the layers and their blobs
are of interest here: this module walks through its fields by their numbers in `caffe.proto`. An
`.h5` is Caffe's own HDF5 snapshot, `data/LAYER/0` and `data/LAYER/1`; an `.npz` holds arrays named
`LAYER/0` and `LAYER/1`. The first is the filters, (out, in, height, width), the second the biases.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from dmlfast.errors import UserError
from dmlfast.models.googlenet import INCEPTIONS

SUFFIXES = (".caffemodel", ".h5", ".hdf5", ".npz", ".npy")

LAYERS = {"conv1/7x7_s2": "conv1", "conv2/3x3_reduce": "conv2_reduce", "conv2/3x3": "conv2"}
for _name in INCEPTIONS:
    for _branch in ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5"):
        LAYERS[f"inception_{_name}/{_branch}"] = f"inception_{_name}.conv_{_branch}"
    LAYERS[f"inception_{_name}/pool_proj"] = f"inception_{_name}.pool_proj"

Blobs = dict[str, list[np.ndarray]]


def read_googlenet(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `BVLCGoogLeNet` from a Caffe file of it.

    Layers that the network does not have are left out: auxiliary heads, classifiers, embeddings.
    The filters of the first layer are turned from BGR to RGB.

    Raises:
        UserError: where the file is damaged, or lacks a layer.
        OSError: where it cannot be read.
    """
    path = Path(path)
    blobs = _read_blobs(path)
    missing = [layer for layer in LAYERS if len(blobs.get(layer, ())) != 2]
    if missing:
        raise UserError(
            f"{path} is not a model of BVLC GoogLeNet: {missing[0]}"
            + (f" and {len(missing) - 1} other layers are" if len(missing) > 1 else " is")
            + " missing"
        )
    tensors = {}
    for layer, name in LAYERS.items():
        filters, biases = blobs[layer]
        tensors[f"{name}.weight"] = torch.from_numpy(np.array(filters, dtype=np.float32))
        tensors[f"{name}.bias"] = torch.from_numpy(np.array(biases, dtype=np.float32).ravel())
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1).contiguous()
    return tensors


def _read_blobs(path: Path) -> Blobs:
    if path.suffix == ".npy":
        raise UserError(
            f"{path}: a .npy file of several arrays is a pickle, which could execute anything; "
            "save them with numpy.savez, named LAYER/0 and LAYER/1"
        )
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return _by_layer(dict(arrays))
    if path.suffix == ".caffemodel":
        try:
            return _by_layer(dict(_caffemodel_blobs(memoryview(path.read_bytes()))))
        except (IndexError, KeyError, ValueError):
            raise UserError(f"{path} is damaged or not a Caffe model") from None
    with h5py.File(path, "r") as file:
        layers = {layer: file.get(f"data/{layer}") for layer in LAYERS}
        return {
            layer: [blobs[key][()] for key in sorted(blobs)]
            for layer, blobs in layers.items()
            if isinstance(blobs, h5py.Group)
        }


def _by_layer(arrays: dict[str, np.ndarray]) -> Blobs:
    """Arrays that are named LAYER/NUMBER, by layer and in the order of their numbers."""
    blobs: Blobs = {}
    for key in sorted(arrays):
        blobs.setdefault(key.rpartition("/")[0], []).append(arrays[key])
    return blobs


def _caffemodel_blobs(net: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """The blobs of all layers of a NetParameter, each named LAYER/NUMBER."""
    numbers = {100: (1, 7), 2: (4, 6)}  # LayerParameter, and V1LayerParameter: name, blobs
    for field, layer in _fields(net):
        if field not in numbers or not isinstance(layer, memoryview):
            continue
        name_field, blob_field = numbers[field]
        parts = [(part, value) for part, value in _fields(layer) if isinstance(value, memoryview)]
        name = bytes(dict(parts)[name_field]).decode()
        for number, blob in enumerate(value for part, value in parts if part == blob_field):
            yield f"{name}/{number}", _blob(blob)


def _blob(blob: memoryview) -> np.ndarray:
    """The array of a BlobProto, in the shape it gives: a BlobShape, or four numbers of old."""
    old_shape, shape, data = [1, 1, 1, 1], [], []
    for field, value in _fields(blob):
        if field in (1, 2, 3, 4) and isinstance(value, int):
            old_shape[field - 1] = value
        elif field == 7 and isinstance(value, memoryview):
            for _, dims in _fields(value):
                shape += [dims] if isinstance(dims, int) else list(_varints(dims))
        elif field == 5 and isinstance(value, memoryview):
            data.append(np.frombuffer(value, dtype="<f4"))
        elif field == 8 and isinstance(value, memoryview):
            data.append(np.frombuffer(value, dtype="<f8"))
    return np.concatenate(data).reshape(shape or old_shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number and value, an integer or the bytes of anything else."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"there is no wire type {kind} here")
        if position + size > len(message):
            raise ValueError("the message is cut short")
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varints(message: memoryview) -> Iterator[int]:
    position = 0
    while position < len(message):
        value, position = _varint(message, position)
        yield value
