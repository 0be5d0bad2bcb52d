import pytest
import torch
from dmlfast.cli.main import main

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("arguments", "what"), [([], "tune"), (["--forget"], "forget"), (["--seconds", "5"], "tune")]
)
def test_without_a_gpu_there_is_nothing_to_tune(arguments, what, capsys):
    assert main(["tune", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"Error: nothing to {what}: Triton interprets")


def test_seconds_are_not_negative(capsys):
    assert main(["tune", "--seconds", "-1"]) == 2
    assert "--seconds" in capsys.readouterr().err


@pytest.fixture
def as_if_tuned(monkeypatch, tmp_path):
    """A GPU that takes trials as they are given."""
    from dmlfast.ops import gpu
    from dmlfast.ops.triton import tune

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "why_no_triton", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    trials = [
        tune.Trial("half", "reduce", (128, 64), 1.25),
        tune.Trial("half", "reduce", (64, 64), reason="OutOfResources: too much"),
    ]

    def trials_not_known(gpu, device, seconds, known):
        return (trial for trial in trials if trial not in known)

    monkeypatch.setattr(tune, "tune", trials_not_known)
    return tmp_path


def test_trials_are_shown_and_kept(as_if_tuned, capsys):
    table = as_if_tuned / "trials.csv"
    assert main(["tune", "--csv", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1.250 ms" in lines[0]
    assert "OutOfResources: too much" in lines[1]
    assert lines[2].startswith("kept in ")
    kind, *rows = (line.rpartition(",") for line in table.read_text().splitlines())
    assert kind == ("kind,kernel,tile,milliseconds,reason", ",", "versions")
    assert [row[0] for row in rows] == [
        "half,reduce,128 64,1.2500,",
        "half,reduce,64 64,,OutOfResources: too much",
    ]
    assert all(row[2].startswith("tiles-a-gpu-triton-") for row in rows)


def test_a_table_of_the_same_versions_is_resumed(as_if_tuned, capsys):
    table = as_if_tuned / "trials.csv"
    resumed = ["tune", "--csv", str(table), "--resume"]
    measured = []
    for arguments in (resumed, resumed, resumed[:-1]):
        assert main(arguments) == 0
        measured.append(capsys.readouterr().out.count("1.250 ms"))
    assert measured == [1, 0, 1]
    table.write_text(table.read_text().replace("a-gpu", "another-gpu"))
    assert main(resumed) == 0
    assert "1.250 ms" in capsys.readouterr().out


def test_a_table_that_cannot_be_written_is_found_before(as_if_tuned, capsys):
    assert main(["tune", "--csv", str(as_if_tuned / "none" / "trials.csv")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_what_was_found_can_be_forgotten(as_if_tuned, capsys):
    from dmlfast.ops.triton import tuned

    path = tuned.write("A GPU", {})
    assert main(["tune", "--forget"]) == 0
    assert not path.exists()
    assert main(["tune", "--forget"]) == 0
    assert "there is no" in capsys.readouterr().out
