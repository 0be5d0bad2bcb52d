import csv
from pathlib import Path

import pytest
from dmlfast.bench import training

from dmlfast.errors import UserError
from dmlfast.training import TrainConfig, train


def test_a_run_is_recorded(tmp_path):
    config = TrainConfig(
        dataset="digits",
        batch_size=12,
        max_steps=6,
        eval_interval=6,
        log_interval=2,
        device="cpu",
    )
    run = train(config, tmp_path / "run")
    rows = run.summary()
    row = training.row_of(run, "Some GPU")
    assert (row["machine"], row["steps"], row["batch_size"]) == ("Some GPU", "6", "12")
    assert 0 < float(row["map_at_r"]) <= float(row["recall_at_1"]) <= 1
    middle = sum(float(each["images_per_second"]) for each in rows[1:]) / 2  # the median of two
    assert float(row["images_per_second"]) == pytest.approx(middle, abs=0.5)
    assert 0 < float(row["loss_share"]) < 1


ROW = dict.fromkeys((*training.KEY, "recall_at_1"), "1")


def test_a_row_takes_the_place_of_one_like_it(tmp_path):
    path = tmp_path / "training.csv"
    training.update(path, ROW)
    training.update(path, {**ROW, "machine": "2"})
    training.update(path, {**ROW, "recall_at_1": "3"})
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{**ROW, "recall_at_1": "3"}, {**ROW, "machine": "2"}]


def test_another_table_is_refused(tmp_path):
    path = Path(tmp_path, "training.csv")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"training\.csv is not a table of dmlfast\.bench"):
        training.update(path, ROW)
    assert path.read_text() == "a,b\n1,2\n"
