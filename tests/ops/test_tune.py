"""Tuning keeps the fastest tile that is right, and what it keeps can never break a run."""

import json

import pytest
import torch

pytest.importorskip("triton")
from dmlfast.ops.triton import configs, tune, tuned
from dmlfast.ops.triton.tuned import CANDIDATES, FULL, HALF

GPU = "A GPU"
PROBLEMS = tune.PROBLEMS  # the fixture has others in their place
SMALL = {HALF: {"small": (20, 8)}, FULL: {"reduce": (130, 8), "gradient": (130, 8)}}
TILES = {
    HALF: {"small": ((32, 32, 16, 4, 1), (16, 16, 16, 4, 1))},
    FULL: {
        "reduce": ((64, 32, 32, 4, 1), (32, 32, 32, 4, 1), (48, 32, 32, 4, 1)),
        "gradient": ((64, 32, 32, 4, 1),),
    },
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "PROBLEMS", SMALL)
    monkeypatch.setattr(tune, "CANDIDATES", TILES)
    monkeypatch.setattr(tuned, "CANDIDATES", TILES)
    return tmp_path


@pytest.fixture
def times(monkeypatch):
    """Milliseconds by what `configs` says at the moment: all kernels' tiles of a dtype."""
    fastest = {"reduce": 64, "gradient": 64, "small": 32}
    seen = []

    def milliseconds(call):
        call()
        tiles = configs.tiles_of(torch.float32), configs.tiles_of(torch.bfloat16)
        seen.append(tiles)
        time = 100.0
        time -= 10 * (tiles[0].reduce.BN == 32 and fastest["reduce"] == tiles[0].reduce.BM)
        time -= 20 * (tiles[0].reduce.BM == 32)
        time -= 1 * (tiles[0].gradient.BN == 32)  # too little to count
        time -= 5 * (tiles[1].small.BW == 32 and tiles[1].small.BN == 16)
        return time

    monkeypatch.setattr(tune, "median_milliseconds", milliseconds)
    return seen


def run(seconds=1000.0):
    return list(tune.tune(GPU, "cpu", seconds))


def test_the_fastest_is_kept_where_it_gains_enough(times):
    before = configs.tiles_of(torch.float32), configs.tiles_of(torch.bfloat16)
    trials = run()
    found = tuned.read(GPU)
    assert found == {HALF: {"small": (32, 32, 16, 4, 1)}, FULL: {"reduce": (32, 32, 32, 4, 1)}}
    assert before == (configs.tiles_of(torch.float32), configs.tiles_of(torch.bfloat16))
    measured = {t.tile: t.milliseconds for t in trials if t.kernel == "reduce"}
    assert measured[64, 64, 32, 4, 1] == 100.0
    assert measured[64, 32, 32, 4, 1] == 90.0
    assert measured[32, 32, 32, 4, 1] == 80.0
    assert times[-1][0].reduce.BM == 32  # what was found serves the kernels after it


def test_what_is_known_is_not_measured_again(times):
    trials = run()
    found = tuned.read(GPU)
    tuned.path_for(GPU).unlink()
    known = [t for t in trials if t.tile not in ((64, 32, 32, 4, 1), (48, 32, 32, 4, 1))]
    again = list(tune.tune(GPU, "cpu", 1000.0, known))
    assert {t.tile for t in again} == {(64, 32, 32, 4, 1), (48, 32, 32, 4, 1)}
    assert tuned.read(GPU) == found


def test_a_tile_that_fails_is_left_out_with_its_reason(times):
    failed = [t for t in run() if t.tile == (48, 32, 32, 4, 1)]
    assert failed[0].milliseconds is None
    assert failed[0].reason


def test_a_wrong_result_is_never_kept(times, monkeypatch):
    step = tune._step

    def wrong(*arguments):
        right = step(*arguments)

        def call():
            results = right()
            off = configs.tiles_of(torch.float32).reduce.BM == 32
            return [results[0], results[1] * (1.1 if off else 1.0)]

        return call

    monkeypatch.setattr(tune, "_step", wrong)
    trials = run()
    assert tuned.read(GPU)[FULL] == {"reduce": (64, 32, 32, 4, 1)}
    assert any("wrong: relative error 1.0e-01" in t.reason for t in trials)


def test_what_does_not_fit_in_the_time_is_left_out(times):
    trials = run(seconds=0.0)
    assert {t.reason for t in trials} == {"left out: the time is up"}
    assert tuned.read(GPU) == {}


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_what_was_found_before_stays(times, seconds):
    found = {FULL: {"gradient": (64, 32, 32, 4, 1)}}
    tuned.write(GPU, found)
    run(seconds)
    assert tuned.read(GPU)[FULL]["gradient"] == (64, 32, 32, 4, 1)


def test_without_a_home_nothing_was_found(monkeypatch):
    def nowhere(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tuned.Path, "expanduser", nowhere)
    assert tuned.read(GPU) == {}


def test_a_table_takes_what_was_found(monkeypatch):
    tuned.write(GPU, {FULL: {"reduce": (32, 32, 32, 4, 1)}})
    table = configs.TILES[90][FULL]
    tiles = configs.replaced(table, tuned.read(GPU)[FULL])
    assert tiles == table._replace(reduce=configs.Tile(32, 32, 32, 4, 1))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '"text"',
        "null",
        json.dumps({FULL: {"reduce": [1, 2, 3, 4, 5]}}),
        json.dumps({FULL: {"nothing": [64, 32, 32, 4, 1]}}),
        json.dumps({"float8": {"reduce": [64, 32, 32, 4, 1]}}),
        json.dumps({FULL: {"reduce": 7}}),
        json.dumps({FULL: []}),
        "\x00\xff",
    ],
)
def test_a_file_that_cannot_be_used_is_a_warning(content):
    path = tuned.path_for(GPU)
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match="is ignored"):
        assert tuned.read(GPU) == {}


def test_no_file_and_a_folder_in_its_place_are_nothing():
    assert tuned.read(GPU) == {}
    tuned.path_for(GPU).mkdir(parents=True)
    assert tuned.read(GPU) == {}


def test_files_of_other_gpus_and_versions_are_others(monkeypatch):
    names = {tuned.path_for(GPU), tuned.path_for("Another GPU")}
    monkeypatch.setattr(tuned.triton, "__version__", "0.1")
    names.add(tuned.path_for(GPU))
    monkeypatch.setattr(tuned.dmlfast, "__version__", "0.0.9")
    names.add(tuned.path_for(GPU))
    assert len(names) == 4


@pytest.mark.parametrize("kind", [HALF, FULL])
def test_every_shipped_tile_is_a_candidate_of_its_shape(kind, monkeypatch):
    monkeypatch.undo()
    for tiles in configs.TILES.values():
        shipped = tiles[kind]._asdict()
        shipped.pop("hinges")  # which are not tuned
        for kernel, tile in shipped.items():
            assert all(len(tried) == len(tile) for tried in CANDIDATES[kind][kernel])


@pytest.mark.parametrize("capability", configs.TILES)
def test_the_product_that_is_tuned_is_of_one_block(capability):
    """Of several blocks of bfloat16 weights the library multiplies, whatever the tile is."""
    rows, _ = PROBLEMS[HALF]["product"]
    assert rows <= configs.TILES[capability][HALF].weights.block


@pytest.mark.parametrize(
    ("version", "capability", "interpreted", "stages"),
    [
        ((3, 6), 90, False, 1),
        ((3, 7), 90, False, 1),
        ((3, 8), 90, False, 3),
        ((3, 6), 80, False, 3),
        ((3, 6), 90, True, 3),
    ],
)
def test_nothing_is_loaded_ahead_where_it_would_overwrite_operands(
    version, capability, interpreted, stages, monkeypatch
):
    """Of scores of pairs, whose products take an operand that is made in registers."""
    monkeypatch.setattr(configs, "TRITON", version)
    monkeypatch.setattr(configs, "_capability", lambda: capability)
    monkeypatch.setattr(configs, "interpreted", lambda: interpreted)
    tiles = configs.TILES[90][HALF]
    assert configs.launch(tiles.pddm._replace(stages=3))["num_stages"] == stages
    assert configs.launch(tiles.scores._replace(stages=3))["num_stages"] == 3
