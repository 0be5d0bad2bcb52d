import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image

from dmlfast.data import create_augmentation
from dmlfast.errors import UserError
from dmlfast.losses import LiftedStructuredLoss
from dmlfast.models import load_model
from dmlfast.training import loop, train
from dmlfast.training.distributed import World

from .helpers import state, tiny_config, weights

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def test_a_step_is_that_of_the_loss_on_the_whole_network():
    """The loss is cut off the network to be timed: the step must be that of plain backward()."""
    config = tiny_config(augment=False, lr=0.01)
    trainer = loop.Trainer(config, ALONE)
    plain = loop.seeded_model(0, name="convnet", channels=1, embedding_dim=8)
    optimizer = loop.build_optimizer(config, plain, trainer.loss_fn)
    for step in range(3):
        images, labels = trainer.dataset.take(trainer.sampler.batch(step))
        lr = trainer.set_learning_rate()
        assert lr == 0.01 * loop.learning_rate_factor(config, step, 8)
        loss, seconds = trainer.train_step(images, labels)
        trainer.step += 1
        for group in optimizer.param_groups:
            group["lr"] = lr
        expected = trainer.loss_fn(plain(images), labels)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss == expected.item()
        assert seconds > 0
    for ours, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_step_depends_on_settings_and_step_alone():
    def losses(first: int, seed: int = 0) -> list[float]:
        trainer = loop.Trainer(tiny_config(seed=seed, lr=0), ALONE)
        trainer.model.register_forward_hook(lambda model, args, output: F.dropout(output, 0.2))
        torch.rand(first + 3)  # whatever was drawn before must not matter
        trainer.step = first
        values = []
        for images, labels in trainer.batches():
            trainer.set_learning_rate()
            values.append(trainer.train_step(images, labels)[0])
            trainer.step += 1
        return values

    whole = losses(0)
    assert len(set(whole)) == 8
    # With lr = 0 the weights stay, and batch statistics do not reach the loss.
    assert losses(5) == whole[5:]
    assert losses(0, seed=1) != whole


def test_every_step_process_and_seed_draws_something_else():
    drawn = set()
    for seed in (0, 1):
        for rank in (0, 1):
            trainer = loop.Trainer(tiny_config(seed=seed), ALONE)
            trainer.world = dataclasses.replace(ALONE, rank=rank)
            for trainer.step in range(5):
                drawn.add(trainer.seed_step())
    assert len(drawn) == 2 * 2 * 5


def test_loading_processes_change_nothing(finished, tmp_path):
    for workers in (0, 2):
        assert loop.Trainer(tiny_config(workers=workers), ALONE).batches().workers == workers
    run = train(tiny_config(workers=2, max_steps=8), tmp_path / "run")
    assert weights(run) == weights(finished)


def test_a_run_folder_is_complete(finished):
    names = {path.name for path in finished.path.iterdir()}
    assert names == {"args.yaml", "summary.csv", "curves.png", "checkpoints", "tensorboard"}
    assert any(path.stat().st_size for path in (finished.path / "tensorboard").iterdir())
    assert finished.config == tiny_config()
    with finished.summary_path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "step",
        "epoch",
        "loss",
        "lr",
        "images_per_second",
        "loss_share",
        "val_recall_at_1",
        "val_map_at_r",
        "selected_on",
    ]
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert [row["selected_on"] for row in rows] == ["", "", "", "val"] * 2
    for row in rows:
        assert math.isfinite(float(row["loss"]))
        assert 0 < float(row["loss_share"]) < 1
        assert float(row["images_per_second"]) > 0
    peak = tiny_config().lr
    assert [float(row["lr"]) for row in rows[:2]] == pytest.approx([peak / 2, peak])


def test_rows_hold_the_mean_over_their_steps(finished, tmp_path):
    each = [float(row["loss"]) for row in finished.summary()]
    run = train(tiny_config(log_interval=4, checkpoint_interval=8), tmp_path / "run")
    rows = run.summary()
    assert [row["step"] for row in rows] == ["4", "8"]
    assert [float(row["loss"]) for row in rows] == pytest.approx(
        [np.mean(each[:4]), np.mean(each[4:])], rel=1e-4
    )


def test_training_learns(tmp_path):
    run = train(
        tiny_config(max_steps=60, lr=3e-3, eval_interval=60, checkpoint_interval=60),
        tmp_path / "run",
    )
    losses = [float(row["loss"]) for row in run.summary()]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3


def test_best_is_the_first_of_the_best_evaluations(tmp_path, monkeypatch):
    precisions = iter([0.2, 0.6, 0.6, 0.4])
    monkeypatch.setattr(
        loop.Trainer, "evaluate", lambda self: {"recall_at_1": 0.9, "map_at_r": next(precisions)}
    )
    config = tiny_config(eval_interval=2, checkpoint_interval=100, keep_checkpoints=1)
    run = train(config, tmp_path / "run")
    assert run.checkpoint("best").step == 4
    assert run.checkpoint("last").step == 8
    assert run.steps() == [4, 8]
    assert state(run)["best"] == {"step": 4, "recall_at_1": 0.9, "map_at_r": 0.6}


def test_validation_is_on_held_out_training_classes_and_stamped(finished):
    trainer = loop.Trainer(tiny_config(), ALONE)
    assert trainer.eval_dataset.split == "val"
    assert not set(trainer.eval_dataset.labels) & set(trainer.dataset.labels)
    assert state(finished)["selected_on"] == "val"


def test_selection_on_test_is_stamped(tmp_path):
    assert loop.Trainer(tiny_config(select_on="test"), ALONE).eval_dataset.split == "test"
    run = train(tiny_config(select_on="test", max_steps=4), tmp_path / "run")
    assert state(run)["selected_on"] == "test"
    assert "val_recall_at_1" not in run.summary()[0]
    assert run.summary()[-1]["selected_on"] == "test"
    assert float(run.summary()[-1]["test_recall_at_1"]) == pytest.approx(
        state(run)["best"]["recall_at_1"], rel=1e-4
    )


def test_without_validation_classes_the_last_checkpoint_is_the_best(tmp_path):
    run = train(tiny_config(val_fraction=0, max_steps=4), tmp_path / "run")
    assert state(run)["best"] is None
    assert run.checkpoint("best").step == run.checkpoint("last").step == 4
    assert run.curves_path.exists()


def test_the_evaluation_is_that_of_the_network_in_eval_mode():
    from dmlfast.retrieval import Features, evaluate

    trainer = loop.Trainer(tiny_config(), ALONE)
    values = trainer.evaluate()
    assert trainer.model.training
    images, labels = trainer.eval_dataset.take(range(len(trainer.eval_dataset)))
    with torch.no_grad():
        embeddings = trainer.model.eval()(images).numpy()
    report = evaluate(Features(embeddings, labels.numpy()))
    assert values["recall_at_1"] == pytest.approx(report["recall_at_1"], abs=2e-3)
    assert values["map_at_r"] == pytest.approx(report["map_at_r"], abs=1e-3)


def test_bf16_is_close_to_fp32(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        run = train(tiny_config(precision=precision, lr=0), tmp_path / precision)
        losses[precision] = [float(row["loss"]) for row in run.summary()]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_reference_and_fused_loss_give_the_same_curve(tmp_path):
    losses = {}
    for impl in ("reference", "auto"):
        run = train(tiny_config(impl=impl, lr=1e-4), tmp_path / impl)
        losses[impl] = [float(row["loss"]) for row in run.summary()]
    assert losses["auto"] == pytest.approx(losses["reference"], rel=1e-3)


@pytest.mark.parametrize("augment", [True, False])
def test_images_are_augmented_unless_it_is_switched_off(augment):
    seen = []
    trainer = loop.Trainer(tiny_config(augment=augment), ALONE)
    trainer.model.register_forward_pre_hook(lambda model, args: seen.append(args[0]))
    images, labels = next(iter(trainer.batches()))
    for step in range(2):
        trainer.step = step
        trainer.train_step(images, labels)
        generator = torch.Generator().manual_seed(trainer.seed_step())
        varied = create_augmentation("digits")(images, generator)
        assert (varied - images / 255).abs().max() > 0.1
        assert torch.equal(seen[-1], varied if augment else images)


def test_the_loss_has_the_margin_and_the_implementation_of_the_settings():
    device = torch.device("cpu")
    labels = np.arange(3)
    assert loop.build_loss(tiny_config(), device, labels).margin == LiftedStructuredLoss().margin
    loss_fn = loop.build_loss(tiny_config(margin=0.25, impl="reference"), device, labels)
    assert (loss_fn.margin, loss_fn.impl) == (0.25, "reference")


def test_the_loss_has_the_options_of_the_settings():
    config = tiny_config(loss="triplet", loss_options="mining=semihard,reduction=mean")
    loss_fn = loop.build_loss(config, torch.device("cpu"), np.arange(4))
    assert (loss_fn.mining, loss_fn.reduction) == ("semihard", "mean")


def test_a_loss_over_classes_needs_no_positive_pairs(tmp_path):
    config = tiny_config(
        loss="norm-softmax", margin=0.1, images_per_class=1, batch_size=3, max_steps=2
    )
    loss_fn = loop.Trainer(config, ALONE).loss_fn
    assert loss_fn.cosine_margin == 0.1
    assert loss_fn.classes.tolist() == sorted(set(loop.load_split(config, "train").labels.tolist()))
    assert loss_fn.draws == 0
    train(config, tmp_path / "run")


def test_embeddings_have_length_1_where_that_is_asked_for(tmp_path):
    run = train(tiny_config(normalize=True, max_steps=1), tmp_path / "run")
    images, _ = loop.load_split(run.config, "test").take(range(9))
    model = load_model(run.checkpoint("last").folder)
    torch.testing.assert_close(model(images).norm(dim=1), torch.ones(9))


@pytest.mark.parametrize("compile", [True, False])
def test_the_network_that_trains_is_compiled_where_it_is_asked_for(monkeypatch, compile):
    calls = []

    class Compiled(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, images):
            calls.append(self.module)
            return self.module(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    trainer = loop.Trainer(tiny_config(compile=compile), ALONE)
    trainer.train_step(*next(iter(trainer.batches())))
    assert calls == ([trainer.model] if compile else [])


def test_a_split_is_that_of_the_settings(monkeypatch):
    monkeypatch.setattr(loop, "create_dataset", lambda name, **kwargs: (name, kwargs))
    config = tiny_config(data_dir="some where", val_fraction=0.3, seed=5)
    assert loop.load_split(config, "val") == (
        "digits",
        {"split": "val", "data_dir": "some where", "val_fraction": 0.3, "seed": 5},
    )


class Proxies(torch.nn.Module):
    """A loss with weights of its own."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(10, 8))

    def forward(self, embeddings, labels):
        return F.cross_entropy(embeddings @ self.weight.T, labels)


def test_a_loss_with_weights_trains_at_its_own_rate_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "create_loss", lambda name, **kwargs: Proxies())
    config = tiny_config(loss_lr=0.5, warmup_steps=0)
    trainer = loop.Trainer(config, ALONE)
    group = trainer.optimizer.param_groups[-1]
    assert group["params"] == [trainer.loss_fn.weight]
    before = trainer.loss_fn.weight.detach().clone()
    images, labels = next(iter(trainer.batches()))
    trainer.set_learning_rate()
    trainer.train_step(images, labels)
    moved = (trainer.loss_fn.weight - before).abs()[labels.unique()]
    assert moved.max().item() == pytest.approx(
        0.5, rel=1e-3
    )  # Adam's first step is the rate itself

    def final(out, steps):
        for stop in steps:
            config = tiny_config(loss_lr=0.5, max_steps=stop)
            run = train(config, out, resume=out.exists())
        return weights(run), (run.checkpoint("last").folder / "loss.safetensors").read_bytes()

    monkeypatch.setattr(loop, "learning_rate_factor", lambda config, step, total_steps: 1.0)
    assert final(tmp_path / "whole", [6]) == final(tmp_path / "parts", [2, 4, 6])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digitz"}, "unknown data set 'digitz': did you mean 'digits'?"),
        ({"loss": "lifte"}, "unknown loss 'lifte': did you mean 'lifted'?"),
        ({"backbone": "convnext"}, "'convnext': did you mean 'convnet'?"),
        ({"device": "cpux"}, "unknown device 'cpux': did you mean 'cpu'?"),
        ({"device": "cpu:0"}, "unknown device 'cpu:0'"),
        ({"impl": "cpux"}, "cpux"),
        ({"batch_size": 4000}, "a batch size of 4000 is more than the"),
        ({"batch_size": 13}, "13 is not a multiple of images per class, 4"),
        ({"images_per_class": 1, "batch_size": 3}, "images-per-class must be at least 2"),
        (
            {"images_per_class": 3, "batch_size": 3},
            "would hold only one: batch-size must be at least twice",
        ),
        ({"val_fraction": 0.99}, "leaves no class to train on"),
        ({"sampler": "pair"}, "sampler must be balanced or pairs or hard-neighbours, not 'pair'"),
        ({"sampler": "pairs", "batch_size": 7}, "a multiple of 2, not 7"),
        ({"sampler": "hard-neighbours", "batch_size": 10}, "a multiple of 4, not 10"),
        ({"sampler": "hard-neighbours", "candidates": 99}, "needs 594 images, and there are"),
        ({"ce_weight": -1.0}, "ce-weight must be at least 0, not -1.0"),
        ({"loss_options": "mining=all"}, "unknown option of the lifted loss 'mining'"),
        ({"loss": "triplet", "loss_options": "mining=some"}, "the triplet loss cannot be computed"),
        ({"groups": (4, 4)}, "groups work only with boosted losses, not with lifted"),
        ({"loss": "bier", "groups": (3, 4)}, "groups [3, 4] do not add up to embedding_dim, 8"),
        ({"loss": "bier", "learners": 9}, "learners: 8 components are too few for 9 learners"),
        ({"loss": "pddm", "loss_options": "per=row"}, "per must be one of batch, class, anchor"),
        ({"loss": "norm-softmax", "loss_options": "class_fraction=2.0"}, "at most 1, not 2.0"),
        ({"loss": "norm-softmax", "loss_options": "temperature=0"}, "temperature must be above 0"),
        ({"loss": "norm-softmax", "loss_options": "embedding_dim=8"}, "setting: --embedding-dim"),
    ],
)
def test_settings_that_cannot_be_are_found_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        train(tiny_config(**changes), tmp_path / "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="device 'cuda': torch finds no GPU here"):
        train(tiny_config(device="cuda"), tmp_path / "run")


@pytest.mark.parametrize(("burst", "kept"), [(1, None), (5, 4)])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path, monkeypatch, burst, kept
):
    real = loop.create_loss("lifted")

    class Bursts(torch.nn.Module):
        calls = 0

        def forward(self, embeddings, labels):
            self.calls += len(embeddings) == 12
            return real(embeddings, labels) * (math.nan if self.calls == burst else 1)

    monkeypatch.setattr(loop, "create_loss", lambda name, **kwargs: Bursts())
    with pytest.raises(UserError) as caught:
        train(tiny_config(), tmp_path / "run")
    message = f"the loss is nan in step {burst}: try a lower lr or more warmup-steps"
    assert str(caught.value) == (
        f"{message} (the checkpoint of step {kept} is kept)" if kept else message
    )
    run = loop.RunFolder(tmp_path / "run")
    assert run.steps()[-1:] == ([kept] if kept else [])
    assert [row["step"] for row in run.summary()] == [str(step) for step in range(1, burst)]


def test_a_run_that_failed_in_its_first_step_is_replaced(tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("no first step")

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", fail)
        with pytest.raises(UserError, match="no first step"):
            train(tiny_config(), tmp_path / "run")
    run = train(tiny_config(max_steps=1), tmp_path / "run")
    assert run.steps() == [1]
    assert len(list(run.events_path.iterdir())) == 1


def test_a_run_that_another_process_has_begun_meanwhile_is_left_to_it(tmp_path, monkeypatch):
    real = loop.create_run

    def overtaken(config, out, overwrite):
        real(config, out, overwrite)
        return real(tiny_config(seed=1), out)

    monkeypatch.setattr(loop, "create_run", overtaken)
    with pytest.raises(UserError, match="another process has started a run in"):
        train(tiny_config(), tmp_path / "run")
    assert loop.RunFolder(tmp_path / "run").config.seed == 1


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    real = torch.optim.AdamW.step

    def burst(self, *args, **kwargs):
        real(self, *args, **kwargs)
        burst.calls += 1
        if burst.calls == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.inf)

    burst.calls = 0
    monkeypatch.setattr(torch.optim.AdamW, "step", burst)
    with pytest.raises(UserError, match="a weight is not finite in step 4"):
        train(tiny_config(), tmp_path / "run")
    assert loop.RunFolder(tmp_path / "run").steps() == [2]


def test_one_process_looks_for_what_cannot_be_read(tmp_path, monkeypatch):
    for name in "abcd":
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{k}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    (tmp_path / "b" / "0.png").write_bytes(b"no picture")
    options = {"dataset": "folder", "data_dir": str(tmp_path), "val_fraction": 0.0}
    config = tiny_config(**options, dataset_options="on_error=skip")
    sent = []

    class Two(World):
        def from_main(self, value):
            sent.append(value)
            return sent[0]

    found = [loop.load_split(config, "train", Two(rank, 2, torch.device("cpu"))) for rank in (0, 1)]
    assert sent[0].tolist() == [0, 2, 4, 5]
    assert sent[1] is None
    for dataset in (*found, loop.load_split(config, "train")):
        assert dataset.split == "train"
        assert list(dataset.paths) == ["a/0.png", "a/2.png", "b/1.png", "b/2.png"]
