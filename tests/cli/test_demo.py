import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from dmlfast.bench import harness
from dmlfast.bench.devices import Cpu
from dmlfast.cli import bench
from dmlfast.cli.main import COMMANDS, main

from dmlfast.retrieval import evaluate, load_features


@pytest.mark.long
def test_demo_compares_three_embeddings_and_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, sizes in bench.PAIR_SIZES.items():
        monkeypatch.setitem(bench.PAIR_SIZES, kind, sizes._replace(quick="24x4,32x4"))
    monkeypatch.setattr(harness, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(Cpu, "gemm_shapes", ((8, 8, 8),))
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--max-steps", "20"]) == 0
    printed = capsys.readouterr().out
    lines = printed[printed.index("test classes, never seen in training") :].splitlines()
    reports = set()
    rows = {
        "raw pixels": (32 * 32, "raw pixels"),
        "untrained network": (64, "convnet, untrained"),
        "trained network": (64, "convnet"),
    }
    for line, (name, (width, model)) in zip(lines[1:4], rows.items(), strict=True):
        features = load_features(out / f"{name.split()[0]}.h5")
        assert features.attributes["model"] == model
        assert features.attributes["split"] == "test"
        assert features.dimension == width
        report = evaluate(features, clustering=False, bootstrap=0)
        values = f"{report['recall_at_1']:.3f}", f"{report['map_at_r']:.3f}"
        assert line.split() == [*name.split(), *values]
        reports.add(values)
    assert len(reports) == 3
    assert lines[4] == "lifted loss and gradient, batch 32"
    providers = [line.split()[0] for line in lines[5:] if line.split()[2] == "ms"]
    assert "naive" in providers
    assert any(name.startswith("dmlfast-") for name in providers)
    made = {path.name for path in out.iterdir()}
    named = {line.split()[0].rstrip("/") for line in lines[-5:]}
    assert made == named | {"raw.h5", "untrained.h5", "bench.csv"}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object, int], None]:
    """Puts in the place of a command one that prints JSON and returns an exit code."""

    def put(name: str, printed: object, code: int) -> None:
        @click.command(context_settings={"ignore_unknown_options": True})
        @click.argument("words", nargs=-1)
        def command(words: tuple[str, ...]) -> int:
            click.echo(json.dumps(printed))
            return code

        monkeypatch.setitem(sys.modules, f"fake_{name}", types.SimpleNamespace(command=command))
        monkeypatch.setitem(COMMANDS, name, (f"fake_{name}", "Stands in."))

    return put


@pytest.mark.parametrize("measured", [[], [{"n": 512, "provider": "naive", "median_ms": 1.0}]])
def test_interrupted_bench_interrupts_the_demo(
    tmp_path: Path,
    stand_in: Callable[[str, object, int], None],
    capsys: pytest.CaptureFixture[str],
    measured: list[dict[str, object]],
) -> None:
    for name in ("train", "embed"):
        stand_in(name, name, 0)
    stand_in("eval", {"recall_at_1": 0.5, "map_at_r": 0.25}, 0)
    stand_in("bench", measured, 130)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 130
    output = capsys.readouterr()
    assert output.err.endswith("Interrupted.\n")
    assert "never seen in training" not in output.out
    stand_in("bench", [{"n": 512, "provider": "naive", "median_ms": 1.0}], 0)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert "never seen in training" in capsys.readouterr().out


@pytest.mark.parametrize("held", [["raw.h5"], ["run/args.yaml", "thesis.tex"], ["run/notes"]])
def test_a_folder_that_is_no_earlier_demo_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], held: list[str]
) -> None:
    out = tmp_path / "demo"
    (out / "run").mkdir(parents=True)
    for name in held:
        (out / name).write_text("mine")
    before = sorted(out.rglob("*"))
    assert main(["demo", "--out", str(out)]) == 1
    expected = f"Error: {out} is neither empty nor an earlier demo: choose another --out\n"
    assert capsys.readouterr().err == expected
    assert sorted(out.rglob("*")) == before
    assert all((out / name).read_text() == "mine" for name in held)


def test_an_earlier_demo_is_replaced_whatever_it_came_to(
    tmp_path: Path, stand_in: Callable[[str, object, int], None]
) -> None:
    for name in ("train", "embed"):
        stand_in(name, name, 0)
    stand_in("eval", {"recall_at_1": 0.5, "map_at_r": 0.25}, 0)
    stand_in("bench", [{"n": 512, "provider": "naive", "median_ms": 1.0}], 0)
    (tmp_path / "run").mkdir()
    for name in ("run/args.yaml", "raw.h5", "bench.csv", ".tmp-1-trained.h5"):
        (tmp_path / name).write_text("old")
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "bench.csv").exists()
