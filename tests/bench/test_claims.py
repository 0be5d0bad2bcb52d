"""Claims: equal budgets, nothing run twice, and what tables and pictures say of the runs."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from dmlfast.bench.claims import CLAIMS, get_claim, report, study
from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, recall
from dmlfast.bench.claims.study import REPORTED, TUNING, Run

from dmlfast.errors import UserError
from tests.training.helpers import tiny_config


def tiny(**changes):
    """A claim of two arms, whose runs take a second."""
    config = tiny_config()
    fields = {
        "name": "tiny",
        "title": "Tiny",
        "hypothesis": "Nothing.",
        "settings": {f.name: getattr(config, f.name) for f in dataclasses.fields(config)},
        "arms": [Arm("a", {"loss": "lifted"}), Arm("b", {"loss": "contrastive"})],
        "grid": {"margin": (0.5, 1.0), "lr": (1e-3, 3e-3, 1e-2)},
        "trials": 4,
        "baseline": "a",
        "measure": recall,
        "measures": MEASURES,
        "seeds": range(3),
    }
    return Claim(**fields | changes)


@pytest.fixture
def pretended(monkeypatch):
    """Nothing is trained: MAP at R is lr x margin, recall the seed in per cent; tasks are kept."""
    tasks = []

    def pretend(todo, jobs):
        for task in todo:
            tasks.append(task)
            config = task.config
            values = {"recall_at_1": config.seed / 100, "map_at_r": 0.5} if task.measure else {}
            yield study._finished(
                task.run, val_map_at_r=config.lr * config.margin, best_step=8, values=values
            )

    monkeypatch.setattr(study, "_in_processes", pretend)
    return tasks


def runs_of(values, arm="a"):
    """Reported runs with these recalls."""
    return [
        Run(REPORTED, arm, seed, "lr=1", 0.5, 8, {"recall_at_1": value, "map_at_r": value / 2})
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_gives_every_arm_the_same_effort(name):
    claim = get_claim(name)
    assert claim.name == name
    assert claim.hypothesis
    assert len(claim.seeds) == 5
    assert claim.baseline in [arm.name for arm in claim.arms]
    for arm in claim.arms:
        trials = claim.trials_of(arm)
        assert len(trials) == claim.trials
        assert len({str(trial) for trial in trials}) == len(trials)
        for trial in [{}, *trials]:
            config = claim.config(arm, trial, 3)  # of settings that there are
            assert (config.seed, config.select_on) == (3, "val")
            assert config.val_fraction > 0
            assert config.max_steps * config.batch_size == pytest.approx(64_000, rel=0.01)


def test_a_name_that_is_no_claim():
    with pytest.raises(UserError, match=r"unknown claim 'batch_size': did you mean 'batch_sizes'"):
        get_claim("batch_size")


def test_the_budget_is_said_in_a_sentence():
    expected = "4 tuning trials, and then 3 runs with the settings that did best, of 96 images each"
    assert tiny().budget == f"for each arm {expected}"
    assert tiny(trials=0, grid={}).budget == "for each arm 3 runs, of 96 images each"
    arms = [Arm("a", {}), Arm("b", {"batch_size": 24})]
    assert tiny(arms=arms).budget.endswith("of 96 to 192 images each")


def test_the_best_trial_of_each_arm_trains_from_every_seed(pretended, tmp_path):
    claim = tiny()
    runs = study.study(claim, tmp_path / "tiny.csv", 1, lambda line: None)
    tuning = [task for task in pretended if task.run.stage == TUNING]
    assert [task.run.arm for task in tuning] == ["a"] * 4 + ["b"] * 4
    assert {task.config.seed for task in tuning} == {3}
    assert {task.measure for task in tuning} == {None}  # the test classes stay out of it
    best = max(claim.trials_of(claim.arms[0]), key=lambda trial: trial["lr"] * trial["margin"])
    reported = [task for task in pretended if task.run.stage == REPORTED]
    assert [(task.run.arm, task.config.seed) for task in reported] == [
        (arm, seed) for arm in "ab" for seed in range(3)
    ]
    for task in reported:
        assert (task.config.lr, task.config.margin) == (best["lr"], best["margin"])
    assert len(runs) == len(pretended) == 14


def test_arms_with_one_grid_try_the_same_and_an_arm_may_have_its_own():
    claim = tiny(arms=[Arm("a", {}), Arm("b", {}), Arm("c", {}, grid={"lr": (1.0, 2.0, 3.0, 4.0)})])
    first, second, third = (claim.trials_of(arm) for arm in claim.arms)
    assert first == second
    assert third == [{"lr": 1.0}, {"lr": 2.0}, {"lr": 3.0}, {"lr": 4.0}]


def test_what_the_file_holds_is_not_run_again(pretended, tmp_path):
    path = tmp_path / "tiny.csv"
    runs = study.study(tiny(), path, 1, lambda line: None)
    pretended.clear()
    assert study.study(tiny(), path, 1, lambda line: None) == runs
    assert not pretended
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:6] + lines[7:]) + "\n")
    assert study.study(tiny(), path, 1, lambda line: None) == runs
    assert len(pretended) == 1


def test_a_run_that_is_run(tmp_path):
    claim = tiny()
    config = claim.config(claim.arms[0], {"lr": 1e-3}, 0)
    run = study._perform(study._Task(Run(REPORTED, "a", 0, "lr=0.001"), config, claim.measure))
    assert 0 < run.val_map_at_r <= 1
    assert 0.5 < run.values["recall_at_1"] <= 1
    assert run.values["map_at_r"] == round(run.values["map_at_r"], study.DIGITS)
    assert run.torch == torch.__version__


def test_a_run_that_diverges_is_kept_as_such(tmp_path):
    claim = tiny()
    config = claim.config(claim.arms[0], {"lr": 1000.0, "optimizer": "sgd"}, 0)
    run = study._perform(study._Task(Run(REPORTED, "a", 0, "lr=1000"), config, claim.measure))
    assert run.val_map_at_r is None
    study.write_runs(tmp_path / "x.csv", claim, [run])
    assert study.read_runs(tmp_path / "x.csv") == [run]
    assert "| diverged | diverged |  | lr=1000 | 0 |" in report.table(claim, [run])


def test_a_trial_that_diverges_is_the_worst():
    claim = tiny()
    first, *others = claim.trials_of(claim.arms[0])
    runs = [Run(TUNING, "a", 3, study._text(first))]
    runs += [Run(TUNING, "a", 3, study._text(other), 0.1) for other in others]
    assert study.choose(claim, claim.arms[0], runs) == others[0]


def test_intervals_are_students():
    values = [0.1, 0.2, 0.3, 0.4, 0.6]
    mean, half = report.interval(values)
    assert mean == pytest.approx(0.32)
    assert half == pytest.approx(2.7764451 * np.std(values, ddof=1) / math.sqrt(5))
    assert all(map(math.isnan, report.interval([])))


def test_differences_are_of_the_same_seeds():
    runs = runs_of([0.1, 0.5, 0.9]) + runs_of([0.2, 0.6, 1.0], arm="b")[::-1]
    mean, half = report.difference(tiny(), runs, "b", "recall_at_1")
    assert mean == pytest.approx(0.1)
    assert half == pytest.approx(0, abs=1e-9)
    without = report.difference(tiny(), runs[1:], "b", "recall_at_1")  # seed 0 has no counterpart
    assert without[0] == pytest.approx(0.1)


def test_the_table_is_in_per_cent():
    runs = runs_of([0.5, 0.6, 0.7]) + runs_of([0.6, 0.7, 0.8], arm="b")
    head, _, first, second = report.table(tiny(), runs).splitlines()
    assert head == (
        "|  | recall at 1 | MAP at R | recall at 1, above a | chosen on validation | runs |"
    )
    assert first == "| a | 60.0 ± 24.8 | 30.0 ± 12.4 |  | lr=1 | 3 |"
    assert second == "| b | 70.0 ± 24.8 | 35.0 ± 12.4 | +10.0 ± 0.0 | lr=1 | 3 |"


@pytest.mark.parametrize("places", [(None, None), (64, 128)])
def test_the_picture_shows_every_run(places, tmp_path):
    claim = tiny(arms=[Arm("a", {}, x=places[0]), Arm("b", {}, x=places[1])], x_label="size")
    runs = runs_of([0.5, 0.6, 0.7]) + runs_of([0.6, 0.7, 0.8], arm="b")
    axes = report.draw(claim, runs).axes[0]
    shares = 0 if places[0] is None else 1
    drawn = {
        round(float(v), 6) for line in axes.lines for v in np.atleast_1d(line.get_data()[shares])
    }
    assert {50, 60, 70, 80} <= drawn
    report.save_picture(claim, runs, tmp_path / "tiny.png")
    assert (tmp_path / "tiny.png").stat().st_size > 5000


def test_the_curves_of_two_losses_are_laid_over_each_other():
    claim = get_claim("same_curve")
    runs = [
        Run(REPORTED, arm.name, seed, "", 0.5, 8, {"loss_10": 2.0 + k, "loss_20": 1.0 + k})
        for k, arm in enumerate(claim.arms)
        for seed in claim.seeds
    ]
    left, right = claim.picture(claim, runs).axes
    assert {line.get_label(): list(line.get_ydata()) for line in left.lines} == {
        "dmlfast": [2.0, 1.0],
        "dmlfast, reference": [3.0, 2.0],
        "pytorch-metric-learning": [4.0, 3.0],
    }
    apart = {tuple(np.round(line.get_ydata(), 6).tolist()) for line in right.lines}
    assert apart == {(0.5, 1.0), (1.0, 2.0)}


RESULTS = Path(__file__).parents[2] / "bench" / "claims" / "results"


@pytest.mark.parametrize("name", [name for name in CLAIMS if (RESULTS / f"{name}.csv").exists()])
def test_the_readme_has_the_table_of_the_results(name):
    claim, runs = get_claim(name), study.read_runs(RESULTS / f"{name}.csv")
    for arm in claim.arms:
        own = [run for run in runs if run.arm == arm.name]
        assert {run.seed for run in own if run.stage == REPORTED} == set(claim.seeds)
        tried = {run.settings for run in own if run.stage == TUNING}
        assert {study._text(trial) for trial in claim.trials_of(arm)} <= tried
        best = study._text(study.choose(claim, arm, [run for run in own if run.stage == TUNING]))
        assert {run.settings for run in own if run.stage == REPORTED} == {best}
    readme = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert report.table(claim, runs) in readme
    assert f"({name}.png)" in readme.replace("results/", "")
    assert (RESULTS / f"{name}.png").exists()
    assert claim.hypothesis in readme
