import dataclasses

import numpy as np
import pytest
import yaml

from dmlfast.errors import UserError
from dmlfast.training import TrainConfig
from dmlfast.training.config import read_settings


def test_round_trip_through_yaml(tmp_path):
    config = TrainConfig(lr=3e-5, max_steps=7, data_dir="some where", compile=True, margin=0.25)
    config = dataclasses.replace(config, schedule="step", milestones=(4, 6))
    path = tmp_path / "args.yaml"
    path.write_text(config.to_yaml())
    assert TrainConfig(**read_settings(path)) == config
    assert set(yaml.safe_load(path.read_text())) == {
        field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)
    }


def test_yaml_takes_either_spelling_and_exponents_without_a_point(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("batch-size: 32\nmax_steps: 9\nlr: 1e-4\nweight-decay: 1\nmargin: null\n")
    settings = read_settings(path)
    assert settings == {
        "batch_size": 32,
        "max_steps": 9,
        "lr": 1e-4,
        "weight_decay": 1.0,
        "margin": None,
    }
    assert type(settings["weight_decay"]) is float


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("5000", (5000,)), ("[50, 70]", (50, 70)), ("50,70", (50, 70)), ("''", ()), ("[]", ())],
)
def test_milestones_in_yaml(tmp_path, text, numbers):
    path = tmp_path / "c.yaml"
    path.write_text(f"milestones: {text}\n")
    assert read_settings(path) == {"milestones": numbers}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", "unknown key 'batchsize': did you mean 'batch-size'?"),
        ("zzz: 3", "unknown key 'zzz'"),
        ("3: 3", "unknown key '3'"),
        ("batch-size: many", "batch-size must be a whole number, not 'many'"),
        ("batch-size: 1.5", "batch-size must be a whole number, not 1.5"),
        ("batch-size: true", "batch-size must be a whole number, not True"),
        ("batch-size: null", "batch-size must be a whole number, not None"),
        ("batch-size: 0", "batch-size must be at least 1, not 0"),
        ("batch-size: 3\nbatch_size: 4", "'batch_size' is given twice"),
        ("batch-size: 3\nbatch-size: 4", "'batch-size' is given twice"),
        ("lr: fast", "lr must be a number, not 'fast'"),
        ("lr: .nan", "lr must be finite, not nan"),
        ("lr: [1]", "lr must be a number, not [1]"),
        ("embedding-dim: 65537", "embedding-dim must be at most 65536, not 65537"),
        ("seed: 9223372036854775808", "seed must be at most 9223372036854775807, not 92"),
        ("max-steps: 1000000001", "max-steps must be at most 1000000000, not 1000000001"),
        ("epochs: 1000001", "epochs must be at most 1000000, not 1000001"),
        ("workers: 1025", "workers must be at most 1024, not 1025"),
        ("lr: 1001", "lr must be at most 1000, not 1001.0"),
        ("loss-lr: 1e300", "loss-lr must be at most 1000, not 1e+300"),
        ("weight-decay: 1e300", "weight-decay must be at most 1000, not 1e+300"),
        ("margin: .inf", "margin must be finite, not inf"),
        ("val-fraction: 1", "val-fraction must be below 1, not 1.0"),
        ("compile: 1", "compile must be true or false, not 1"),
        ("precision: fp8", "precision must be fp32 or bf16, not 'fp8'"),
        ("milestones: 3, 2", "milestones must be ascending whole numbers, such as 15000,18000"),
        ("milestones: [0, 2]", "milestones must be ascending whole numbers"),
        ("milestones: 1,x", "milestones must be ascending whole numbers"),
        ("milestones: 1.5", "milestones must be ascending whole numbers"),
        ("milestones: null", "milestones must be ascending whole numbers"),
        ("optimizer: adam", "optimizer must be adamw or sgd, not 'adam'"),
        ("loss: 3", "loss must be a string, not 3"),
        ("", "is empty: it must hold keys and values"),
        ("# lr: 3\n", "is empty: it must hold keys and values"),
        ("- lr", "must hold keys and values, such as `batch-size: 256`"),
        ("lr: [", "is not a YAML file, line "),
        ("!!python/object/apply:os.getcwd []", "is not a YAML file"),
    ],
)
def test_bad_yaml_is_one_line_with_file_and_key(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_settings(path)
    line = str(caught.value)
    assert str(path) in line
    assert message in line
    assert "\n" not in line


def test_unreadable_yaml(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_settings(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        read_settings(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_settings(tmp_path / "c.yaml")


def test_values_are_checked_without_yaml_too():
    with pytest.raises(UserError, match="images-per-class must be at least 1, not 0"):
        TrainConfig(images_per_class=0)
    with pytest.raises(UserError, match="lr must be a number, not None"):
        TrainConfig(lr=None)  # type: ignore[arg-type]


def test_steps_come_from_epochs_unless_they_are_given():
    assert TrainConfig(epochs=3).total_steps(steps_per_epoch=7) == 21
    assert TrainConfig(epochs=3, max_steps=5).total_steps(steps_per_epoch=7) == 5


def test_numbers_of_numpy_and_paths_are_taken(tmp_path):
    config = TrainConfig(
        seed=np.int64(3),  # type: ignore[arg-type]
        lr=np.float32(0.5),  # type: ignore[arg-type]
        data_dir=tmp_path,  # type: ignore[arg-type]
        schedule="step",
        milestones=np.array([3, 5]),  # type: ignore[arg-type]
    )
    given = config.seed, config.lr, config.data_dir, config.milestones
    assert given == (3, 0.5, str(tmp_path), (3, 5))
    assert {type(value) for value in (config.seed, *config.milestones)} == {int}


def test_a_schedule_of_steps_has_some():
    with pytest.raises(UserError, match="schedule step needs milestones"):
        TrainConfig(schedule="step")
