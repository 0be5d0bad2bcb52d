"""Embeddings in one HDF5 file, written in constant memory, whole or not at all."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import torch

import dmlfast
from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path, write_error
from dmlfast.retrieval.codes import binarize
from dmlfast.retrieval.features import (
    DISTANCES,
    ROLES,
    Features,
    bit_attributes,
    check_scorer,
    to_numpy,
)
from dmlfast.retrieval.neighbours import nearest_neighbours
from dmlfast.retrieval.pair_scorer import PairScorer
from dmlfast.text import counted

CHUNK_BYTES = 2**18
UTF8 = h5py.string_dtype("utf-8")
BEST_COMPRESSION = 1100  # of deflate, the best of the built-in filters
UNIT = "pddm"  # the group of the metric unit
UNIT_LAYERS = ("difference", "mean", "joint", "score")
UNIT_TENSORS = [f"{layer}.{part}" for layer in UNIT_LAYERS for part in ("weight", "bias")]
UNIT_SETTINGS = ("normalize_inputs", "normalize_embeddings")
BUILT_IN_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # of HDF5 and h5py; any other would load a plug-in


class FeatureWriter:
    """Writes an embedding file batch by batch, in constant memory.

    `path` gets the file when the `with` block ends without an error; until then, and after an
    error, it stays as it was. `dimension` is the length D of an embedding, `dtype` float32 or
    float16, `distance` "euclidean", "angular" or "hamming": then only the signs of the embeddings
    are stored, as `binarize` packs them, and `dtype` and `normalized` do not matter; `keep_float`
    stores the embeddings too, which dmlfast does not read. `class_names` are indexed by label.
    `attributes` are plain values (numbers, strings, lists of them; None is left out) that say where
    the embeddings come from. `scorer` is the metric unit that was trained along, which goes into
    the group `/pddm`.

        with FeatureWriter("feats.h5", dimension=64, attributes={"model": "convnet"}) as writer:
            for images, labels, paths in batches:
                writer.append(model(images), labels, paths)

    Raises UserError if `path` exists and `overwrite` is false, when it is made, and if the file
    cannot be written, ValueError for wrong arguments.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dimension: int,
        normalized: bool = False,
        distance: str = "euclidean",
        dtype: str = "float32",
        class_names: Sequence[str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        scorer: PairScorer | None = None,
        keep_float: bool = False,
        overwrite: bool = False,
    ) -> None:
        if dimension < 1:
            raise ValueError(f"dimension must be at least 1, not {dimension}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, not '{distance}'")
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be float32 or float16, not '{dtype}'")
        self.path = Path(path)
        self.dimension = dimension
        self.dtype = np.dtype(dtype)
        self.class_names = class_names
        self.scorer = scorer
        self.overwrite = overwrite
        self.attributes = dict(attributes or {}) | {
            "type": "dense",
            "distance": distance,
            "dimension": dimension,
            "point_type": "float",
            "normalized": normalized,
            "dmlfast_version": dmlfast.__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.binary = distance == "hamming"
        self.floats = keep_float or not self.binary
        if self.binary:
            self.attributes |= bit_attributes(dimension)
        if not self.floats:
            self.attributes["normalized"] = None
        if scorer is not None:
            check_scorer(scorer, dimension, self.binary)
        refuse_existing(self.path, overwrite)

    def __enter__(self) -> "FeatureWriter":
        with ExitStack() as stack:
            self._file, self._sink = stack.enter_context(new_hdf5(self.path, self.overwrite))
            self._begin()
            self._stack = stack.pop_all()
        return self

    def _begin(self) -> None:
        """Writes what is known before the rows are."""
        if self.binary:
            width = (self.dimension + 7) // 8
            self._add("codes", np.dtype(np.uint8), max(1, CHUNK_BYTES // width), width)
        if self.floats:
            rows = max(1, CHUNK_BYTES // (self.dimension * self.dtype.itemsize))
            self._add("embeddings", self.dtype, rows, self.dimension)
        self._add("labels", np.dtype(np.int64), 4096)
        self._add("paths", UTF8, 4096)
        if self.class_names is not None:
            names = [_storable(name, "class name") for name in self.class_names]
            self._file.create_dataset("class_names", data=names, dtype=UTF8)
        for name, value in self.attributes.items():
            if value is None:
                continue
            try:
                self._file.attrs[name] = value
            except (TypeError, ValueError) as error:
                raise ValueError(f"the attribute '{name}' cannot be stored: {error}") from error
        if self.scorer is not None:
            _write_scorer(self._file, self.scorer)

    def append(
        self,
        embeddings: np.ndarray | torch.Tensor,
        labels: np.ndarray | torch.Tensor,
        paths: Sequence[str],
        roles: np.ndarray | None = None,
    ) -> None:
        """Adds B rows.

        embeddings (B, D) floats, labels (B,) integers, paths (B,), roles (B,) 0, 1 or 2. Either
        every call gives `roles` or none does. Raises UserError where an embedding is not finite or
        a path cannot be stored, and adds no row then; and where the disk is full.
        """
        with np.errstate(over="ignore"):  # told below
            block = to_numpy(embeddings).astype(self.dtype, copy=False)
        if block.shape != (len(paths), self.dimension) or len(labels) != len(paths):
            raise ValueError(
                f"embeddings {block.shape}, {len(labels)} labels and {len(paths)} paths"
                f" do not make rows of {self.dimension} values"
            )
        labels = to_numpy(labels)
        if labels.ndim != 1 or (labels.dtype.kind not in "iu" and len(labels)):
            raise ValueError(f"labels must be (B,) integers, not {labels.shape} {labels.dtype}")
        if roles is not None:
            roles = np.asarray(roles)
            if roles.shape != labels.shape or not np.isin(roles, list(ROLES.values())).all():
                raise ValueError("roles must be (B,) integers, each 0, 1 or 2")
        given, some = roles is not None, len(self._file["labels"]) > 0
        if given != ("role" in self._file) and (some or not given):
            raise ValueError("roles must be given for every row or for none")
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise UserError(
                f"the embedding of '{paths[bad[0]]}' holds NaN or infinity as {self.dtype}"
            )
        paths = [_storable(path, "path") for path in paths]

        if self.binary:
            self._extend("codes", binarize(embeddings))
        if self.floats:
            self._extend("embeddings", block)
        self._extend("labels", labels.astype(np.int64))
        self._extend("paths", paths)
        if roles is not None:
            if "role" not in self._file:
                self._add("role", np.dtype(np.uint8), 4096)
            self._extend("role", roles)
        self._sink.check(self.path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._stack.close()
        else:  # the caller's error is not one of writing: it is not to be reworded
            discarded = _Discarded()
            self._stack.__exit__(_Discarded, discarded, None)

    def _add(self, name: str, dtype: np.dtype, chunk_rows: int, *width: int) -> None:
        chunks = (chunk_rows, *(max(1, size) for size in width))
        self._file.create_dataset(name, (0, *width), dtype, maxshape=(None, *width), chunks=chunks)

    def _extend(self, name: str, rows: Any) -> None:
        dataset = self._file[name]
        start = len(dataset)
        dataset.resize(start + len(rows), axis=0)
        dataset[start:] = rows


def load_features(path: str | Path) -> Features:
    """Reads an embedding file.

    Expects /embeddings (N, D) float32, float16 or float64, which they stay, or where the distance
    is "hamming" /codes (N, ceil(D / 8)) uint8, /labels (N,) integers and /paths (N,) strings;
    /role, /class_names and the group /pddm of a metric unit may be there. Numbers may be of either
    byte order. Raises UserError naming the file and what was expected where it is missing, no HDF5,
    damaged or of another make, or holds an embedding or a weight that is empty or not finite, in
    float32 too.
    """
    with _reading(path) as file:
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        if attributes.get("distance") == "hamming":
            embeddings = _read(
                file, "codes", "(N, ceil(D / 8)) uint8", ndim=2, kinds="u", sizes=(1,)
            )
        else:
            expected = "(N, D) float32, float16 or float64"
            embeddings = _read(file, "embeddings", expected, ndim=2, kinds="f", sizes=(2, 4, 8))
        labels = _read(file, "labels", "(N,) integers", ndim=1, kinds="iu")
        features = Features(
            embeddings,
            labels.astype(np.int64, copy=False),
            _read_strings(file, "paths"),
            _read(file, "role", "(N,) uint8", ndim=1, kinds="u") if "role" in file else None,
            _read_strings(file, "class_names") if "class_names" in file else [],
            attributes,
            str(path),
            _read_scorer(file) if UNIT in file else None,
        )
        if len(features.paths) != len(features):
            raise ValueError(
                f"{counted(len(features), 'embedding')} but {counted(len(features.paths), 'path')}"
            )
        dimension = attributes.get("dimension", features.dimension)
        if dimension != features.dimension:
            held = "/codes has {} bits" if features.binary else "/embeddings has {} columns"
            raise ValueError(f"{held.format(features.dimension)}, but dimension is {dimension}")
    return features


def export_ann_benchmarks(
    features: Features, path: str | Path, *, k: int = 100, overwrite: bool = False
) -> None:
    """Writes the file that ann-benchmarks reads.

    Datasets train (M, D), test (Q, D), neighbors and distances (Q, k).

    The gallery's rows are `train`, the queries' are `test`; without roles every row is both, and
    each row's nearest neighbour is then itself. The neighbours are exact. Raises UserError if the
    file cannot be written, ValueError for sign bits.
    """
    if features.binary:
        raise ValueError("ann-benchmarks takes floats, not sign bits")
    refuse_existing(Path(path), overwrite)
    train = features.embeddings[features.rows_as("gallery")]
    test = features.embeddings[features.rows_as("query")]
    k = min(k, len(train))
    neighbours, distances = nearest_neighbours(
        test, train, k, distance=DISTANCES[features.distance]
    )
    with new_hdf5(Path(path), overwrite) as (file, _):
        file["train"], file["test"] = train.astype(np.float32), test.astype(np.float32)
        file["neighbors"], file["distances"] = neighbours.astype(np.int32), distances
        file.attrs.update(
            type="dense",
            distance=features.distance,
            dimension=features.dimension,
            point_type="float",
        )


@contextmanager
def new_hdf5(path: Path, overwrite: bool) -> Iterator[tuple[h5py.File, "_Sink"]]:
    """Yields an HDF5 file that takes the name `path` when it is whole."""
    with atomic_write_path(path) as temporary:
        with _Sink(temporary, "w+") as sink:
            with h5py.File(sink, "w", libver=("v110", "v110")) as file:
                yield file, sink
            sink.check(path)
        refuse_existing(path, overwrite)


class _Sink(io.FileIO):
    """A file that keeps its first error to itself.

    HDF5 cannot close a file that it failed to write to, and crashes when the process ends. So a
    write that failed or was interrupted, and every one after it, is taken for done and kept in
    memory, where HDF5 reads it back, until `check` tells of it.
    """

    error: BaseException | None = None

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.unwritten: list[tuple[int, bytes]] = []  # where, and what

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        first, done = self.tell(), 0
        try:
            while self.error is None and done < len(view):
                done += super().write(view[done:])
        except BaseException as error:
            self.error = error
        if done < len(view):
            self.unwritten.append((first + done, bytes(view[done:])))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        if self.error is None:
            return super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        first = self.tell()
        done = super().readinto(view) or 0
        view[done:] = bytes(len(view) - done)
        for place, data in self.unwritten:
            start, end = max(place, first), min(place + len(data), first + len(view))
            if start < end:
                view[start - first : end - first] = data[start - place : end - place]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self.error is None:
                return super().truncate(size)
        except BaseException as error:
            self.error = error
        return size or 0

    def check(self, path: Path) -> None:
        """Raises what went wrong, a failed write as the UserError for `path`."""
        if isinstance(self.error, OSError):
            raise write_error(path, self.error) from self.error
        if self.error is not None:
            raise self.error


class _Discarded(BaseException):
    """Ends the writing of a file that is not wanted any more."""


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Raises a `UserError` for a file that is there and is not to be replaced."""
    if Path(path).exists() and not overwrite:
        raise UserError(f"{path} already exists: --overwrite replaces it")


def _write_scorer(file: h5py.File, scorer: PairScorer) -> None:
    group = file.create_group(UNIT)
    for name, tensor in scorer.tensors().items():
        group[name] = tensor.numpy()
    group.attrs["normalize_inputs"] = scorer.unit.normalize_inputs
    group.attrs["normalize_embeddings"] = scorer.normalize_embeddings


def _read_scorer(file: h5py.File) -> PairScorer:
    group = file[UNIT] if isinstance(file.get(UNIT, getlink=True), h5py.HardLink) else None
    if not isinstance(group, h5py.Group):
        raise ValueError(f"/{UNIT} must be a group")
    tensors = {}
    for name in UNIT_TENSORS:
        ndim = 2 if name.endswith("weight") else 1
        expected = "(out, in) float32" if ndim == 2 else "(out,) float32"
        read = _read(file, f"{UNIT}/{name}", expected, ndim=ndim, kinds="f", sizes=(4,))
        tensors[name] = torch.from_numpy(read)
    settings = {name: group.attrs.get(name) for name in UNIT_SETTINGS}
    for name, value in settings.items():
        if not isinstance(value, np.bool_):
            raise ValueError(f"the attribute {name} of /{UNIT} must be true or false, not {value}")
    try:
        return PairScorer.from_tensors(
            tensors, **{name: bool(value) for name, value in settings.items()}
        )
    except ValueError as error:
        raise ValueError(f"/{UNIT}/{error}") from None


def _storable(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a {what} must be a str, not {type(text).__name__}: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the {what} {text!r} cannot be stored: it is not valid Unicode") from None
    if "\0" in text:
        raise UserError(f"the {what} {text!r} cannot be stored: it holds a NUL character")
    return text


@contextmanager
def _reading(path: str | Path) -> Iterator[h5py.File]:
    """Yields an HDF5 file opened for reading; what is wrong with it becomes one line."""
    try:
        with open(path, "rb") as plain:
            is_empty = not plain.read(1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if is_empty:
        raise UserError(f"{path} is empty")
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is not an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error.args[0] if isinstance(error, KeyError) else error).partition(" (")[0]
        raise UserError(f"{path} is damaged or cut short: {reason}") from error


def _read(
    file: h5py.File,
    name: str,
    expected: str,
    *,
    ndim: int,
    kinds: str,
    sizes: Sequence[int] = (1, 2, 4, 8),
) -> np.ndarray:
    dataset = _dataset(file, name, expected)
    dtype = dataset.dtype
    if dataset.ndim != ndim or dtype.kind not in kinds or dtype.itemsize not in sizes:
        raise ValueError(f"/{name} must be {expected}, not {dataset.shape} {dtype}")
    return dataset.astype(dtype.newbyteorder("="))[()]


def _read_strings(file: h5py.File, name: str) -> list[str]:
    dataset = _dataset(file, name, "(N,) UTF-8 strings")
    if dataset.ndim != 1 or h5py.check_string_dtype(dataset.dtype) is None:
        raise ValueError(f"/{name} must be (N,) UTF-8 strings, not {dataset.shape} {dataset.dtype}")
    return dataset.asstr("utf-8")[()].tolist()


def _dataset(file: h5py.File, name: str, expected: str) -> h5py.Dataset:
    """A dataset whose values stand in the file itself and need nothing loaded to be read."""
    link = file.get(name, getlink=True) if name in file else None
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"no dataset /{name}, expected {expected}")
    creation = dataset.id.get_create_plist()
    filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
    if dataset.external or dataset.is_virtual or not filters <= BUILT_IN_FILTERS:
        raise ValueError(
            f"/{name} keeps its values elsewhere or needs a plug-in; expected plain {expected}"
        )
    # A shape that was damaged, or made up, must not fill the memory with nothing.
    if dataset.nbytes > dataset.id.get_storage_size() * (BEST_COMPRESSION if filters else 1):
        raise ValueError(f"/{name} claims {dataset.shape}, which is more than the file holds")
    return dataset


def _plain(value: Any) -> Any:
    """An attribute's value as the types that JSON knows."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float)) else str(value)
