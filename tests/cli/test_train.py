import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import yaml
from dmlfast.cli.main import main
from PIL import Image

from dmlfast.retrieval import load_features
from dmlfast.training import RunFolder, TrainConfig, loop
from dmlfast.training.config import FIELDS

TINY = [
    "train",
    *("--dataset", "digits", "--batch-size", "12", "--embedding-dim", "8", "--device", "cpu"),
    *("--max-steps", "6", "--warmup-steps", "2"),
    *("--eval-interval", "3", "--checkpoint-interval", "3"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_folders() -> list[Path]:
    return sorted(Path("runs").glob("*"))


def test_a_run_says_where_it_is_and_what_comes_next(capsys):
    assert main(TINY) == 0
    (run,) = run_folders()
    out, err = capsys.readouterr()
    assert run.name.endswith("-lifted-digits")
    first, *card, best, following = out.splitlines()
    assert first == f"{run}: 6 steps, curves in {run}/curves.png"
    state = RunFolder(run).checkpoint("last").state["best"]
    assert card[:-1] == [
        "convnet, 8 dimensions",
        "weights none; pooling average of each of 4 x 4 cells; batch norm trained",
        f"loss lifted; batch size 12; sampler balanced; images per class 4; step {state['step']}",
    ]
    assert card[-1].startswith("trained with dmlfast ")
    assert f"recall@1 {state['recall_at_1']:.4f}" in best
    assert "held-out training classes" in best
    assert following == f"next: dmlfast embed {run} --out feats.h5"
    assert err.splitlines() == [f"training into {run}: 6 steps on cpu"]  # no bar off a terminal


def test_json_and_the_stamp_of_selection_on_test(capsys):
    assert main([*TINY, "--select-on", "test", "--out", "a", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == "a"
    assert result["steps"] == 6
    assert result["selected_on"] == "test"
    assert set(result["best"]) == {"step", "recall_at_1", "map_at_r"}
    assert Path(result["checkpoint"]).is_dir()
    assert main(["train", "--out", "a", "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "on TEST classes, selected on them" in out
    assert "a is finished: 6 steps are done, of 6" in err


def test_the_command_line_wins_over_the_file_which_wins_over_the_defaults():
    Path("c.yaml").write_text("seed: 5\nlog_interval: 2\nkeep-checkpoints: 7\naugment: false\n")
    assert main([*TINY, "-c", "c.yaml", "--log-interval", "1", "--out", "a"]) == 0
    config = RunFolder("a").config
    assert (config.seed, config.log_interval, config.keep_checkpoints) == (5, 1, 7)
    assert not config.augment
    assert config.lr == TrainConfig().lr
    assert len(RunFolder("a").summary()) == 6


def test_a_run_can_be_repeated_from_its_settings():
    assert main([*TINY, "--out", "a"]) == 0
    assert main(["train", "-c", "a/args.yaml", "--out", "b"]) == 0
    assert RunFolder("a").config == RunFolder("b").config
    a, b = (RunFolder(name).checkpoint("last").model_sha256 for name in "ab")
    assert a == b


def test_a_run_that_was_stopped_before_an_evaluation_claims_none(monkeypatch, capsys):
    def stop_after_two(self, *args):
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    real = loop.Trainer.train_step
    monkeypatch.setattr(loop.Trainer, "train_step", stop_after_two)
    assert main([*TINY, "--out", "a"]) == 130
    capsys.readouterr()
    assert main(["train", "--out", "a", "--resume", "--max-steps", "1"]) == 0
    out, err = capsys.readouterr()
    assert "a already has 2 steps, more than 1: there is nothing to do" in err
    assert out.splitlines()[0] == "a: 2 steps"
    assert "best" not in out
    assert main(["embed", "a", "--out", "f.h5"]) == 0
    assert "selected_on" not in load_features("f.h5").attributes


def test_what_is_retyped_is_held_against_the_run(capsys):
    words = ["--optimizer", "sgd", "--momentum", "0.8", "--out", "a"]
    assert main([*TINY, *words]) == 0
    again = ["train", "--resume", "--out", "a", "--max-steps", "8"]
    assert main([*again, "--momentum", "0.8"]) == 0
    assert RunFolder("a").checkpoint("last").step == 8
    assert main([*again, "--candidates", "4"]) == 2
    assert "--candidates works only with sampler hard-neighbours" in capsys.readouterr().err


def test_folders_mean_the_same_wherever_the_run_is_used(monkeypatch):
    for name in ("1/a.png", "1/b.png", "2/a.png", "2/b.png", "3/a.png", "4/a.png"):
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    words = ["--dataset", "folder", "--data-dir", "data", "--cache-images", "~/cache"]
    words += ["--image-size", "8", "--val-fraction", "0", "--batch-size", "4"]
    assert main([*TINY, *words, "--images-per-class", "2", "--out", "a"]) == 0
    config, here = RunFolder("a").config, Path.cwd()
    assert config.data_dir == str(here / "data")
    assert config.cache_images == str(Path.home() / "cache")
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert main(["train", "--resume", "--out", "../a", "--max-steps", "8"]) == 0
    assert RunFolder("../a").config.data_dir == str(here / "data")


def test_epochs_that_are_typed_win_over_steps_from_a_file(capsys):
    Path("c.yaml").write_text("max-steps: 2\n")
    tiny = [word for word in TINY if word not in ("--max-steps", "6")]
    assert main([*tiny, "-c", "c.yaml", "--out", "a"]) == 0
    assert "a: 2 steps" in capsys.readouterr().out
    assert main([*tiny, "-c", "c.yaml", "--epochs", "4", "--out", "b"]) == 0
    assert "b: 4 steps" in capsys.readouterr().out  # a batch holds every class of digits once


def test_resuming_takes_the_settings_of_the_run(capsys):
    assert main([*TINY, "--seed", "3", "--out", "a"]) == 0
    assert main(["train", "--resume", "--out", "a", "--max-steps", "8"]) == 0
    assert RunFolder("a").config.seed == 3
    assert RunFolder("a").checkpoint("last").step == 8
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "a", "--seed", "4"]) == 1
    assert "a was trained with seed 3, not 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--data-dir data", 1, "digits come with scikit-learn: leave the data set's folder"),
        ("--dataset glyph", 1, "unknown data set 'glyph': did you mean 'glyphs'?"),
        ("--loss liftd", 1, "unknown loss 'liftd': did you mean 'lifted'?"),
        ("--backbone convet", 1, "'convet': did you mean 'convnet'?"),
        ("--device cud", 1, "unknown device 'cud': did you mean 'cuda'?"),
        ("--impl cp", 1, "unknown impl 'cp': did you mean 'cpu'?"),
        ("--images-per-class 1 --batch-size 3", 1, "images-per-class must be at least 2"),
        ("--batch-size 100000", 1, "batch size of 100000"),
        ("--batch-size 256", 1, "there are 3: try --batch-size 12, or more --images-per-class"),
        ("--batch-size 10", 1, "batch size of 10 is not a multiple of images per class, 4"),
        ("--batch-size many", 2, "'--batch-size': 'many' is not a valid integer"),
        ("--batch-size 0", 2, "'--batch-size': must be at least 1, not 0"),
        ("--milestones 4,2 --schedule step", 2, "must be ascending whole numbers"),
        ("--schedule step", 2, "--schedule step needs --milestones"),
        (
            "--loss lifted --groups 4,4",
            2,
            "--groups works only with boosted losses, not with lifted",
        ),
        ("--milestones 4", 1, "milestones need schedule step"),
        (
            "--sampler pairs --images-per-class 2",
            2,
            "works only with sampler balanced, not with pairs",
        ),
        ("--momentum 0.5", 2, "--momentum works only with optimizer sgd, not with adamw"),
        ("--gamma 0.5", 2, "--gamma works only with schedule step, not with cosine"),
        ("--learners 2", 2, "--learners works only with boosted losses, not with lifted"),
        ("--weighting released", 2, "--weighting works only with boosted losses, not with lifted"),
        ("--groups 4,4", 2, "--groups works only with boosted losses, not with lifted"),
        (
            "--loss bier --learners 2 --groups 4,4",
            2,
            "--learners and --groups cannot be used together",
        ),
        ("--epochs 3", 2, "--epochs and --max-steps cannot be used together"),
        (
            "--candidates 2",
            2,
            "--candidates works only with sampler hard-neighbours, not with balanced",
        ),
        ("--loss triplet --loss-options mining", 1, "loss options must be NAME=VALUE"),
        ("--lr nan", 2, "'--lr': must be finite, not nan"),
        ("--margin nan", 2, "'--margin': must be finite, not nan"),
        ("--margin 1e39 --out a", 1, "margin 1e+39: the lifted loss would be "),
        ("--seed 99999999999999999999999", 2, "'--seed': must be at most 9223372036854775807"),
        ("--embedding-dim 100000000000", 2, "'--embedding-dim': must be at most 65536"),
        ("--max-steps 99999999999999999999999", 2, "'--max-steps': must be at most 1000000000"),
        ("--out=", 1, ". is neither empty nor a run: choose another --out"),
        ("--out=.. --overwrite", 1, "choose another --out"),
        ("--resume --out=", 1, ". is not a run folder"),
        ("--select-on tst", 2, "'--select-on': must be val or test, not 'tst'"),
        ("--batchsize 3", 2, "No such option '--batchsize'"),
        ("--resume", 2, "--resume needs the folder of the run"),
        ("--resume --overwrite --out a", 2, "cannot be used together"),
        ("--resume --out nowhere", 1, "nowhere is not a run folder"),
        ("--out /proc/none", 1, "cannot write /proc/none"),
        ("-c nowhere.yaml", 2, "cannot read nowhere.yaml: No such file"),
        ("-c empty.yaml", 2, "empty.yaml is empty: it must hold keys and values"),
        ("-c bad.yaml", 2, "bad.yaml: unknown key 'batch-sise': did you mean 'batch-size'?"),
        ("-c type.yaml", 2, "type.yaml: lr must be a number, not 'fast'"),
        ("extra", 2, "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(capsys, words, code, message):
    Path("bad.yaml").write_text("batch-sise: 3\n")
    Path("empty.yaml").touch()
    Path("type.yaml").write_text("lr: fast\n")
    assert main([*TINY, *words.split()]) == code
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("Error")]
    assert message.lower() in line.lower()
    assert "Traceback" not in err
    assert {path.name for path in Path().iterdir()} == {"bad.yaml", "empty.yaml", "type.yaml"}
    if words.startswith("-c"):  # the command line was not at fault: its usage is not shown
        assert err == f"{line}\n"


def test_an_existing_folder_is_not_touched(capsys):
    assert main([*TINY, "--out", "a"]) == 0
    before = RunFolder("a").checkpoint("last").state
    assert main([*TINY, "--seed", "1", "--out", "a"]) == 1
    assert "a already holds a run: --resume continues, --overwrite replaces it" in (
        capsys.readouterr().err
    )
    assert RunFolder("a").checkpoint("last").state == before
    assert main([*TINY, "--seed", "1", "--out", "a", "--overwrite"]) == 0
    assert RunFolder("a").config.seed == 1


def test_help_names_every_setting_in_its_group(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for field in FIELDS.values():
        if field.name == "recipe":  # which -c sets
            assert "--recipe" not in text
            continue
        assert f"\n  --{field.name.replace('_', '-')} " in text
        assert f"\n{field.metadata['group']}:\n" in text
    assert (
        "of which only --data-dir, --cache-images, --impl, --epochs, --max-steps, --eval-interval,"
        " --checkpoint-interval, --keep-checkpoints, --log-interval, --device, --workers and the"
        " on_error of --dataset-options may be changed."
    ) in " ".join(text.split())
    assert "divided among" in " ".join(text.split())
    assert set(yaml.safe_load(TrainConfig().to_yaml())) - {"recipe"} <= {
        word.strip("-") for word in text.split() if word.startswith("--")
    }


def start_on_a_terminal(words: list[str]) -> tuple[subprocess.Popen, int]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    command = [sys.executable, "-c", "from dmlfast.cli.main import main; raise SystemExit(main())"]
    process = subprocess.Popen(
        [*command, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    return process, ours


def read_until(terminal: int, word: str | None) -> str:
    """What the terminal shows up to a word, or up to its end."""
    text = ""
    while word is None or word not in text:
        ready, _, _ = select.select([terminal], [], [], 30)
        assert ready, f"nothing more came after {text[-500:]!r}"
        try:
            text += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the other side is closed
            break
    return text


def test_ctrl_c_on_a_terminal_saves_and_says_how_to_go_on():
    words = [*TINY, "--max-steps", "100000", "--eval-interval", "100000", "--out", "a"]
    process, terminal = start_on_a_terminal(words)
    assert "images/s" in read_until(terminal, "images/s")
    os.killpg(process.pid, signal.SIGINT)
    text = read_until(terminal, None)
    assert process.wait(60) == 130
    step = RunFolder("a").checkpoint("last").step
    assert f"a stopped after step {step}; to continue: dmlfast train --out a --resume" in text
    assert "Traceback" not in text
    assert 0 < step < 100000
    os.close(terminal)
