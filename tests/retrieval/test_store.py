import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import dmlfast
from dmlfast.errors import UserError
from dmlfast.retrieval import (
    Features,
    FeatureWriter,
    evaluate,
    export_ann_benchmarks,
    load_features,
    nearest_neighbours,
    store,
)

ROWS = 25


def example(rows=ROWS, columns=6):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(rows, columns)).astype(np.float32)
    return embeddings, rng.integers(0, 5, rows), [f"klasse-ä/{i}.jpg" for i in range(rows)]


def write(path, *, batch=10, roles=None, **options):
    embeddings, labels, paths = example()
    with FeatureWriter(path, dimension=6, **options) as writer:
        for i in range(0, ROWS, batch):
            part = slice(i, i + batch)
            given = {} if roles is None else {"roles": roles[part]}
            writer.append(embeddings[part], labels[part], paths[part], **given)
    return path


@pytest.mark.parametrize("batch", [1, 10, ROWS])
def test_what_is_written_is_read(tmp_path, batch):
    embeddings, labels, paths = example()
    names = ["null", "eins", "zwei", "drei", "vier"]
    attributes = {"model": "convnet", "step": 7, "groups": [1, 2], "selected_on": None}
    path = write(tmp_path / "f.h5", batch=batch, class_names=names, attributes=attributes)
    features = load_features(path)
    np.testing.assert_array_equal(features.embeddings, embeddings)
    np.testing.assert_array_equal(features.labels, labels)
    assert features.embeddings.dtype == np.float32
    assert features.labels.dtype == np.int64
    assert features.paths == paths
    assert features.class_names == names
    assert features.class_name(3) == "drei"
    assert features.class_name(9) == "9"
    assert features.roles is None
    assert features.source == str(path)
    assert features.attributes["groups"] == [1, 2]
    assert features.attributes["step"] == 7
    assert "selected_on" not in features.attributes
    assert list(tmp_path.iterdir()) == [path]


def test_the_schema(tmp_path):
    roles = (np.arange(ROWS) % 3).astype(np.uint8)
    path = write(tmp_path / "f.h5", roles=roles, class_names=["a"], dtype="float16")
    with h5py.File(path) as file:
        assert set(file) == {"embeddings", "labels", "paths", "role", "class_names"}
        assert file["embeddings"].dtype == np.float16
        assert file["embeddings"].shape == (ROWS, 6)
        assert file["embeddings"].chunks[1] == 6
        assert file["labels"].dtype == np.int64
        assert file["role"].dtype == np.uint8
        assert h5py.check_string_dtype(file["paths"].dtype).encoding == "utf-8"
        assert file["paths"][0].decode() == "klasse-ä/0.jpg"
        attributes = dict(file.attrs)
    assert attributes.pop("created").startswith("20")
    assert attributes == {
        "type": "dense",
        "distance": "euclidean",
        "dimension": 6,
        "point_type": "float",
        "normalized": False,
        "dmlfast_version": dmlfast.__version__,
    }
    np.testing.assert_array_equal(load_features(path).roles, roles)


def test_tensors_are_taken(tmp_path):
    embeddings = torch.randn(4, 6).bfloat16().requires_grad_()
    with FeatureWriter(tmp_path / "f.h5", dimension=6) as writer:
        writer.append(embeddings, torch.arange(4, dtype=torch.int32), list("abcd"))
    features = load_features(tmp_path / "f.h5")
    np.testing.assert_array_equal(features.embeddings, embeddings.detach().float().numpy())
    assert features.labels.tolist() == [0, 1, 2, 3]


def test_no_rows_are_a_file_too(tmp_path):
    with FeatureWriter(tmp_path / "f.h5", dimension=3):
        pass
    assert load_features(tmp_path / "f.h5").embeddings.shape == (0, 3)


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "f.h5"
    embeddings, labels, paths = example()
    with FeatureWriter(path, dimension=6) as writer:
        writer.append(embeddings, labels, paths)
        assert not path.exists()
    assert path.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, FileNotFoundError])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write(tmp_path / "f.h5")
    before = path.read_bytes()
    embeddings, labels, paths = example()
    with (  # noqa: PT012
        pytest.raises(error, match="theirs"),
        FeatureWriter(path, dimension=6, overwrite=True) as writer,
    ):
        writer.append(embeddings, labels, paths)
        raise error("theirs")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_an_existing_file_is_refused_before_the_work_begins(tmp_path):
    path = write(tmp_path / "f.h5")
    with pytest.raises(UserError, match=r"f\.h5 already exists: --overwrite replaces it"):
        FeatureWriter(path, dimension=6)
    with FeatureWriter(path, dimension=2, overwrite=True):
        pass
    assert load_features(path).dimension == 2


def test_a_file_that_appeared_meanwhile_is_refused(tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(UserError, match="exists"), FeatureWriter(path, dimension=6):
        path.write_text("mine")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/f\.h5: No such file"):
        write(tmp_path / "nowhere" / "f.h5")


DISK_FULL = """
import resource, sys, numpy as np
from dmlfast.errors import UserError
from dmlfast.retrieval import FeatureWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with FeatureWriter(sys.argv[1], dimension=64, overwrite=True) as writer:
        for step in range(300):
            paths = [f"{step}/{i}" for i in range(100)]
            writer.append(np.ones((100, 64)), np.zeros(100, int), paths)
except UserError as error:
    print(error, "at", step)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("limit", [0, 100_000, 7_000_000])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, limit):
    path = write(tmp_path / "f.h5")
    before = path.read_bytes()
    command = [sys.executable, "-c", DISK_FULL, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # HDF5 does not crash at the end either
    message, _, step = done.stdout.rpartition(" at ")
    assert message == f"cannot write {path}: File too large"
    assert int(step) < 299  # told as soon as it happened
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_what_the_disk_did_not_take_is_read_back(tmp_path):
    """HDF5 reads what it wrote, and frees memory at addresses that it finds there."""
    path, buffer = tmp_path / "f", bytearray(12)
    path.write_bytes(b"0123456789AB")
    with store._Sink(path, "r") as sink:  # every write fails
        for place, data in ((8, b"abcd"), (9, b"XY"), (16, b"later")):
            sink.seek(place)
            assert sink.write(data) == len(data)
        sink.seek(6)
        assert sink.readinto(buffer) == 12
    assert buffer == b"67aXYd\0\0\0\0la"
    assert isinstance(sink.error, OSError)


MEMORY = """
import resource, sys, numpy as np
from dmlfast.retrieval import FeatureWriter
rows = np.ones((1000, 256), np.float32)
with FeatureWriter(sys.argv[1], dimension=256) as writer:
    for step in range(200):
        writer.append(rows, np.zeros(1000, int), [f"{step}/{i}" for i in range(1000)])
        if step == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_memory_is_constant(tmp_path):
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "f.h5")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (tmp_path / "f.h5").stat().st_size > 200 * 2**20
    assert float(done.stdout) < 30, done.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_not_written(tmp_path, value):
    embeddings, labels, paths = example()
    embeddings[4, 2] = value
    with (
        pytest.raises(UserError, match=r"embedding of 'klasse-ä/4\.jpg' holds NaN"),
        FeatureWriter(tmp_path / "f.h5", dimension=6) as writer,
    ):
        writer.append(embeddings, labels, paths)
    assert not list(tmp_path.iterdir())


def test_float16_that_overflows_is_told(tmp_path):
    with (
        pytest.raises(UserError, match="as float16"),
        FeatureWriter(tmp_path / "f.h5", dimension=1, dtype="float16") as writer,
    ):
        writer.append(np.array([[1e6]]), np.array([0]), ["a"])


@pytest.mark.parametrize("path", ["a\0b", "a\udcffb"])
def test_paths_that_cannot_be_stored(tmp_path, path):
    with (
        pytest.raises(UserError, match="cannot be stored"),
        FeatureWriter(tmp_path / "f.h5", dimension=1) as writer,
    ):
        writer.append(np.zeros((1, 1)), np.array([0]), [path])


def test_wrong_arguments(tmp_path):
    for options in ({"dtype": "float64"}, {"distance": "manhattan"}, {"dimension": 0}):
        with pytest.raises(ValueError, match="must be"):
            FeatureWriter(tmp_path / "f.h5", **({"dimension": 6} | options))
    embeddings, labels, paths = example()
    for batch in [
        (embeddings[:, :5], labels, paths),
        (embeddings, labels[1:], paths),
        (embeddings, labels, paths[1:]),
    ]:
        with (
            pytest.raises(ValueError, match="do not make rows of 6 values"),
            FeatureWriter(tmp_path / "f.h5", dimension=6) as writer,
        ):
            writer.append(*batch)
    with FeatureWriter(tmp_path / "f.h5", dimension=6) as writer:
        writer.append(embeddings, labels, paths)
        with pytest.raises(ValueError, match="roles must be given for every row or for none"):
            writer.append(embeddings, labels, paths, roles=np.zeros(ROWS, np.uint8))
        for wrong in (labels + 0.5, labels.astype(str), labels[:, None]):
            with pytest.raises(ValueError, match=r"labels must be \(B,\) integers, not \(25,"):
                writer.append(embeddings, wrong, paths)
        for role in (-1, 3, 256):
            with pytest.raises(ValueError, match=r"roles must be .* integers, each 0, 1 or 2"):
                writer.append(embeddings, labels, paths, roles=np.full(ROWS, role))
    assert len(load_features(tmp_path / "f.h5")) == ROWS


def test_a_batch_that_is_refused_adds_nothing(tmp_path):
    embeddings, labels, paths = example()
    roles = np.ones(ROWS, np.uint8)
    with FeatureWriter(tmp_path / "f.h5", dimension=6) as writer:
        for wrong in (
            (embeddings, labels, [*paths[:-1], "a\0b"], roles),
            (embeddings, labels, paths, roles[:3]),
            (embeddings, labels, [Path(path) for path in paths], roles),
            (embeddings, labels, paths, roles + 2),
            (np.full_like(embeddings, np.nan), labels, paths, roles),
        ):
            with pytest.raises((UserError, ValueError, TypeError)):
                writer.append(*wrong)
        writer.append(embeddings[:3], labels[:3], paths[:3])
    features = load_features(tmp_path / "f.h5")
    assert features.roles is None
    assert features.paths == paths[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes": {"odd": object()}}, "attribute 'odd' cannot be stored: "),
        ({"class_names": ["a", "b\0"]}, r"class name 'b\\x00' cannot be stored: it holds a NUL"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(tmp_path, options, message):
    with (
        pytest.raises((UserError, ValueError), match=message),
        FeatureWriter(tmp_path / "f.h5", dimension=6, **options),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_labels_of_64_bits_stay_apart(tmp_path):
    labels = np.array([2**63 + 1, 2**63 + 2, 2**64 - 1], np.uint64)
    with FeatureWriter(tmp_path / "f.h5", dimension=1) as writer:
        writer.append(np.ones((3, 1)), labels, list("abc"))
    expected = Features(np.ones((3, 1)), labels).labels
    assert expected.tolist() == [-(2**63) + 1, -(2**63) + 2, -1]
    np.testing.assert_array_equal(load_features(tmp_path / "f.h5").labels, expected)


def test_floats_beside_their_signs(tmp_path):
    path = write(tmp_path / "f.h5", distance="hamming", keep_float=True, dtype="float16")
    embeddings, *_ = example()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["embeddings"], embeddings.astype(np.float16))
        assert "normalized" in file.attrs
    features = load_features(path)
    assert features.binary
    np.testing.assert_array_equal(features.embeddings, np.packbits(embeddings > 0, axis=1))


def change(path, alter):
    with h5py.File(path, "r+") as file:
        alter(file)


def replace(file, name, **options):
    del file[name]
    file.create_dataset(name, **options)


def with_nan(file):
    file["embeddings"][3, 1] = np.nan
    file["embeddings"][7, 0] = np.inf


def with_link(file):
    del file["embeddings"]
    file["embeddings"] = h5py.ExternalLink("/etc/other.h5", "embeddings")


def with_external_values(file):
    del file["embeddings"]
    file.create_dataset(
        "embeddings", (ROWS, 6), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def with_plug_in(file):
    del file["embeddings"]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((ROWS, 6))
    creation.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((ROWS, 6))
    h5py.h5d.create(file.id, b"embeddings", h5py.h5t.IEEE_F32LE, space, creation)


BROKEN = {
    "no embeddings": (
        lambda file: file.pop("embeddings"),
        r"no dataset /embeddings, expected \(N, D\) float32, float16 or float64",
    ),
    "no labels": (lambda file: file.pop("labels"), r"no dataset /labels, expected \(N,\) integers"),
    "no paths": (lambda file: file.pop("paths"), r"no dataset /paths, expected \(N,\) UTF-8"),
    "a group": (
        lambda file: (file.pop("labels"), file.create_group("labels")),
        "no dataset /labels",
    ),
    "flat embeddings": (
        lambda file: replace(file, "embeddings", data=np.zeros(ROWS, np.float32)),
        r"/embeddings must be \(N, D\) float32, float16 or float64, not \(25,\) float32",
    ),
    "complex embeddings": (
        lambda file: replace(file, "embeddings", data=np.zeros((ROWS, 6), complex)),
        "not .* complex128",
    ),
    "double embeddings beyond float32": (
        lambda file: replace(file, "embeddings", data=np.full((ROWS, 6), 1e39)),
        r"25 of 25 embeddings hold NaN or infinity \(rows 0, 1, 2, ...\) as float32",
    ),
    "whole embeddings": (
        lambda file: replace(file, "embeddings", data=np.zeros((ROWS, 6), int)),
        "not .* int64",
    ),
    "other dimension": (
        lambda file: replace(file, "embeddings", data=np.zeros((ROWS, 5), np.float32)),
        "has 5 columns, but dimension is 6",
    ),
    "no columns": (
        lambda file: replace(file, "embeddings", data=np.zeros((ROWS, 0), np.float32)),
        r"embeddings \(25, 0\) have no columns",
    ),
    "real labels": (
        lambda file: replace(file, "labels", data=np.zeros(ROWS)),
        r"/labels must be \(N,\) integers, not \(25,\) float64",
    ),
    "made up shape": (
        lambda file: replace(file, "labels", shape=(10**12,), dtype="i8", chunks=(10,)),
        "/labels claims .* more than the file holds",
    ),
    "few labels": (
        lambda file: replace(file, "labels", data=np.zeros(3, int)),
        "25 embeddings but 3 labels",
    ),
    "few paths": (
        lambda file: replace(file, "paths", data=["a", "b"]),
        "25 embeddings but 2 paths",
    ),
    "number paths": (
        lambda file: replace(file, "paths", data=np.zeros(ROWS)),
        r"/paths must be \(N,\) UTF-8 strings",
    ),
    "bad text": (
        lambda file: replace(file, "paths", data=np.array([b"\xff"] * ROWS)),
        "utf-8",
    ),
    "role of 3": (
        lambda file: file.create_dataset("role", data=np.full(ROWS, 3, np.uint8)),
        "each 0, 1 or 2",
    ),
    "few roles": (
        lambda file: file.create_dataset("role", data=np.zeros(3, np.uint8)),
        r"role must be \(25,\)",
    ),
    "odd distance": (
        lambda file: file.attrs.__setitem__("distance", "manhattan"),
        "distance 'manhattan' is not one of euclidean, angular, hamming",
    ),
    "nan": (with_nan, r"2 of 25 embeddings hold NaN or infinity \(rows 3, 7\)"),
    "link": (with_link, "no dataset /embeddings"),
    "values elsewhere": (with_external_values, "keeps its values elsewhere or needs a plug-in"),
    "plug-in": (with_plug_in, "keeps its values elsewhere or needs a plug-in"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, case):
    alter, message = BROKEN[case]
    path = write(tmp_path / "f.h5")
    change(path, alter)
    with pytest.raises(UserError, match=message) as caught:
        load_features(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_hdf5_at_all(tmp_path):
    cases = {b"": "empty", b"hello": "not an HDF5 file", bytes(4096): "not an HDF5 file"}
    for content, what in cases.items():
        (tmp_path / "f.h5").write_bytes(content)
        with pytest.raises(UserError, match=rf"f\.h5 is {what}$"):
            load_features(tmp_path / "f.h5")
    with pytest.raises(UserError, match=r"cannot read .*none\.h5: No such file or directory"):
        load_features(tmp_path / "none.h5")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load_features(tmp_path)


def test_a_file_cut_short_anywhere(tmp_path):
    whole = write(tmp_path / "whole.h5").read_bytes()
    path = tmp_path / "cut.h5"
    for size in [*range(1, 64), *np.linspace(64, len(whole) - 1, 60, dtype=int)]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.h5 is (not an HDF5 file|damaged or cut short)"):
            load_features(path)


DAMAGED = """
import sys, numpy as np
from dmlfast.errors import UserError
from dmlfast.retrieval import load_features
whole, rng = open(sys.argv[1], "rb").read(), np.random.default_rng(0)
refused = 0
for _ in range(400):
    damaged = bytearray(whole)
    damaged[rng.integers(1000)] ^= rng.integers(1, 256)
    open(sys.argv[2], "wb").write(damaged)
    try:
        load_features(sys.argv[2])
    except UserError as error:
        assert "\\n" not in str(error)
        refused += 1
print(refused)
"""


def test_damage_never_raises_anything_else(tmp_path):
    whole = write(tmp_path / "f.h5")
    command = [sys.executable, "-c", DAMAGED, str(whole), str(tmp_path / "damaged.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300  # what describes the data has check sums


@pytest.mark.parametrize("place", range(4))  # the root group, the embeddings, labels and paths
def test_the_reason_of_damage_has_no_quotes(tmp_path, place):
    path = write(tmp_path / "f.h5")
    content = bytearray(path.read_bytes())
    headers = [match.start() for match in re.finditer(b"OHDR", content)]
    content[headers[place] + 8] ^= 1  # of an object's description, which has a check sum
    path.write_bytes(content)
    message = rf"^{re.escape(str(path))} is damaged or cut short: Unable to [a-z ]*open object$"
    with pytest.raises(UserError, match=message) as caught:
        load_features(path)
    assert isinstance(caught.value.__cause__, KeyError)  # whose text is in quotes


def test_a_read_only_file_in_a_read_only_folder_is_read(tmp_path):
    path = write(tmp_path / "f.h5")
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert len(load_features(path)) == ROWS
    finally:
        tmp_path.chmod(0o755)


def test_other_programs_may_leave_out_the_attributes(tmp_path):
    embeddings, labels, paths = example()
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embeddings"], file["labels"], file["paths"] = embeddings, labels.astype("i4"), paths
    features = load_features(tmp_path / "f.h5")
    assert features.distance == "euclidean"
    assert features.labels.dtype == np.int64


def test_other_programs_may_write_text_as_bytes_and_numbers_in_another_order(tmp_path):
    embeddings, labels, paths = example()
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embeddings"], file["labels"] = embeddings.astype(">f4"), labels.astype(">i8")
        file["paths"] = [path.encode() for path in paths]
        file.attrs["distance"] = np.bytes_("angular")
        file.attrs["names"] = np.array([b"a", b"\xff"])
        file.attrs["nothing"] = h5py.Empty("f4")
    features = load_features(tmp_path / "f.h5")
    assert features.embeddings.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(features.embeddings, embeddings)
    np.testing.assert_array_equal(features.labels, labels)
    assert features.paths == paths
    assert features.distance == "angular"
    assert features.attributes["names"] == ["a", "\ufffd"]
    assert json.dumps(features.attributes)


@pytest.mark.parametrize("order", "<>")
def test_other_programs_may_write_float64(tmp_path, order):
    embeddings = np.random.default_rng(0).normal(size=(ROWS, 6))
    embeddings[1] = embeddings[0] + 1e-12  # nothing in float32
    _, labels, paths = example()
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embeddings"] = embeddings.astype(f"{order}f8")
        file["labels"], file["paths"] = labels, paths
    features = load_features(tmp_path / "f.h5")
    assert features.embeddings.dtype == np.dtype(np.float64)
    np.testing.assert_array_equal(features.embeddings, embeddings)
    assert features.bytes_per_image == 6 * 8
    _, distances = nearest_neighbours(features.embeddings[:1], features.embeddings, 2)
    np.testing.assert_allclose(distances, [[0, 1e-12 * 6**0.5]], rtol=1e-3)
    export_ann_benchmarks(features, tmp_path / "f.hdf5", k=1)
    with h5py.File(tmp_path / "f.hdf5") as file:
        np.testing.assert_array_equal(file["train"][()], embeddings.astype(np.float32))


def test_an_interrupt_while_hdf5_writes(tmp_path, monkeypatch):
    class Interrupted(io.FileIO):
        def write(self, data):
            raise KeyboardInterrupt

    class Sink(store._Sink, Interrupted):
        """The file that `_Sink` writes to is interrupted."""

    monkeypatch.setattr(store, "_Sink", Sink)
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path / "f.h5", dimension=6) as writer:
        writer.append(*example())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.zeros((3, 2), int)}, "embeddings must be"),
        ({"embeddings": np.zeros(3)}, "embeddings must be"),
        ({"embeddings": np.zeros((3, 0))}, "have no columns"),
        ({"labels": np.zeros(3)}, "labels must be"),
        ({"labels": np.zeros(2, int)}, "3 embeddings but 2 labels"),
        ({"paths": ["a"]}, "3 embeddings but 1 path"),
        ({"roles": np.array([0, 1, 3])}, "role must be"),
        ({"embeddings": np.array([[1.0], [np.nan], [2.0]])}, r"1 of 3 .* \(rows 1\)"),
        ({"attributes": {"distance": "odd"}}, "distance 'odd'"),
        ({"embeddings": np.array([[1.0], [2.0], [-4e38]])}, r"1 of 3 .* \(rows 2\) as float32"),
        ({"embeddings": 1.5}, r"embeddings must be \(N, D\) floats, not \(\) float64"),
        ({"embeddings": [[1], [2], [3]]}, r"embeddings must be .* not \(3, 1\) int64"),
        ({"embeddings": torch.zeros(3)}, r"embeddings must be .* not \(3,\) float32"),
        ({"labels": ["a", "b", "c"]}, r"labels must be \(N,\) integers, not \(3,\) <U1"),
    ],
)
def test_features_that_do_not_fit_each_other(change, message):
    arguments = {"embeddings": np.zeros((3, 2)), "labels": np.zeros(3, int)} | change
    with pytest.raises(ValueError, match=message):
        Features(**arguments)


@pytest.mark.parametrize(
    ("embeddings", "dtype"),
    [
        ([[0.5, 1], [2, 3], [4, 5]], np.float64),
        (torch.tensor([[0.5, 1], [2, 3], [4, 5]], requires_grad=True), np.float32),
        (torch.tensor([[0.5, 1], [2, 3], [4, 5]]).double(), np.float64),
        (torch.tensor([[0.5, 1], [2, 3], [4, 5]]).half(), np.float16),
        (torch.tensor([[0.5, 1], [2, 3], [4, 5]]).bfloat16(), np.float32),
    ],
)
def test_features_of_tensors_and_lists(embeddings, dtype):
    for make in (list, torch.tensor, np.array):
        features = Features(embeddings, make([7, 7, 8]), np.array(["a", "b", "c"]), make([0, 1, 2]))
        assert features.embeddings.tolist() == [[0.5, 1], [2, 3], [4, 5]]
        assert features.embeddings.dtype == dtype
        assert features.labels.tolist() == [7, 7, 8]
        assert features.paths == ["a", "b", "c"]
        assert features.rows_as("gallery").tolist() == [0, 2]
        report = evaluate(features, clustering=False)
        assert (report["queries"], report["lone_queries"], report["recall_at_1"]) == (2, 1, 1)


@pytest.mark.parametrize("roles", [None, np.arange(ROWS, dtype=np.uint8) % 3])
def test_export_for_ann_benchmarks(tmp_path, roles):
    features = load_features(write(tmp_path / "f.h5", roles=roles, distance="angular"))
    export_ann_benchmarks(features, tmp_path / "f.hdf5", k=4)
    with h5py.File(tmp_path / "f.hdf5") as file:
        assert dict(file.attrs) == {
            "type": "dense",
            "distance": "angular",
            "dimension": 6,
            "point_type": "float",
        }
        train, test = file["train"][()], file["test"][()]
        neighbours, distances = file["neighbors"][()], file["distances"][()]
    np.testing.assert_array_equal(train, features.embeddings[features.rows_as("gallery")])
    np.testing.assert_array_equal(test, features.embeddings[features.rows_as("query")])
    expected = nearest_neighbours(test, train, 4, distance="cosine")
    np.testing.assert_array_equal(neighbours, expected[0])
    np.testing.assert_array_equal(distances, expected[1])
    with pytest.raises(UserError, match="exists"):
        export_ann_benchmarks(features, tmp_path / "f.hdf5")


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "f.h5").mkdir()
    with pytest.raises(UserError, match="exists"):
        FeatureWriter(tmp_path / "f.h5", dimension=6)
    with (
        pytest.raises(UserError, match="not a regular file"),
        FeatureWriter(tmp_path / "f.h5", dimension=6, overwrite=True),
    ):
        pass
    assert os.listdir(tmp_path) == ["f.h5"]
    assert Path(tmp_path / "f.h5").is_dir()
