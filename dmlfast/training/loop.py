"""The training loop. Everything random in a step depends on the settings and the step alone."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from dmlfast.data import (
    AnyDataset,
    HardNeighbourSampler,
    ImageDataset,
    Sampler,
    create_augmentation,
    create_dataset,
    parse_options,
)
from dmlfast.data.loading import Batch, Images, Loader, TransformedImages, load_rows
from dmlfast.data.prepare import prepare_images
from dmlfast.errors import UserError
from dmlfast.losses import create_loss, parse_loss_options, takes
from dmlfast.models import EmbeddingModel, create_model
from dmlfast.retrieval import Features, evaluate
from dmlfast.retrieval.embed import embed_batches
from dmlfast.text import counted
from dmlfast.training.card import versions
from dmlfast.training.checkpoint import save_checkpoint
from dmlfast.training.classifier import ClassifierLoss
from dmlfast.training.config import TrainConfig
from dmlfast.training.curves import draw_curves
from dmlfast.training.distributed import World, join_world
from dmlfast.training.interrupt import Interrupted, StopRequest, ignore_signals, stop_on_signals
from dmlfast.training.neighbours import hard_neighbours
from dmlfast.training.optimisation import build_optimizer, learning_rate_factor
from dmlfast.training.preparation import (
    build_sampler,
    image_transform,
    learner_groups,
    model_arguments,
)
from dmlfast.training.progress import Progress
from dmlfast.training.run_folder import (
    Report,
    RunFolder,
    check_out,
    create_run,
    open_run,
    quiet,
)
from dmlfast.training.timer import DeviceTimer

EVAL_BATCH_SIZE = 256
RGB = 3  # channels of what transforms make


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
) -> RunFolder:
    """Trains a network and returns the folder of the run.

    Args:
        config: the settings; whatever is wrong with them is found before anything is written.
        out: the folder of the run; by default a new `runs/<date>-<loss>-<dataset>`.
        resume: go on from the newest whole checkpoint in `out`. On a CPU the final weights are, bit
            for bit, those of a run that never stopped.
        overwrite: replace the run in `out`.
        report: called with each line about what is going on.

    Raises:
        UserError: for settings, files and folders that do not fit, and a loss that is not finite.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint is written.
    """
    config = config.with_absolute_folders()
    with join_world(config.device) as world:
        run, interruption = _train(
            world, config, out, resume, overwrite, report if world.is_main else quiet
        )
    if interruption is not None:
        raise interruption
    return run


def _train(
    world: World,
    config: TrainConfig,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    report: Report,
) -> tuple[RunFolder, Interrupted | None]:
    """Trains as one of the processes, which share the network: it is gone before they part."""
    if resume:
        run = open_run(config, out)
    elif out is not None and world.is_main:
        check_out(Path(out), overwrite)  # before images are read
    trainer = Trainer(config, world)
    if not resume:
        run = world.from_main(create_run(config, out, overwrite) if world.is_main else None)
    with run.alone() if world.is_main else nullcontext():
        if resume:
            trainer.resume(run, report)
        elif world.is_main and run.config != config:  # replaced before it was locked
            raise UserError(f"another process has started a run in {run}")
        if trainer.step >= trainer.total_steps:
            report(finished(run, trainer.step, trainer.total_steps))
            return run, None
        report(f"training into {run}: {counted(trainer.total_steps, 'step')} on {world.device}")
        with stop_on_signals() as stop:
            return run, trainer.fit(run, stop)


def finished(run: RunFolder, step: int, total: int) -> str:
    """The line on a run with nothing left to do."""
    if step > total:
        done = counted(step, "step")
        return f"{run} already has {done}, more than {total:,}: there is nothing to do"
    return f"{run} is finished: {counted(step, 'step is', 'steps are')} done, of {total:,}"


class Trainer:
    """A network, its loss and its optimiser after `step` steps, in one process of a run."""

    def __init__(self, config: TrainConfig, world: World):
        self.config, self.world = config, world
        self.dataset = load_split(config, "train", world)
        self.eval_dataset = load_split(config, config.select_on, world)
        sampler = build_sampler(config, self.dataset.labels)
        self.sampler = sampler.shard(world.rank, world.size)
        self.total_steps = config.total_steps(sampler.steps_per_epoch)
        transform = image_transform(config, self.dataset)
        augmenting = config.augment and transform is None
        self.augment = create_augmentation(config.dataset) if augmenting else None
        channels = self.dataset.channels if transform is None else RGB
        self.model = build_model(config, channels, transform).to(world.device)
        self.loss_fn = build_loss(config, world.device, self.dataset.labels)
        self.needs_features = getattr(self.loss_fn, "needs_features", False)
        if self.needs_features:
            self.model.embedding_weight  # noqa: B018  refused before anything is written
        self.load_images(transform)
        self.optimizer = build_optimizer(config, self.model, self.loss_fn)
        self.network = world.wrap(self.model, compile=config.compile)
        self.criterion = world.wrap(self.loss_fn)
        self.step = self.saved_step = 0
        self.best: dict[str, Any] | None = None

    def load_images(self, transform: dict[str, Any] | None) -> None:
        """Makes what is trained and evaluated on of the data sets, and fills their caches."""
        config, world = self.config, self.world
        prepare = partial(
            prepare_images,
            transform=transform,
            cache_dir=config.cache_images,
            workers=config.workers,
            progress=world.is_main and sys.stderr.isatty(),
        )
        self.images = world.main_first(partial(prepare, self.dataset, train=config.augment))
        self.eval_images = world.main_first(partial(prepare, self.eval_dataset))
        self.eval_rows = load_rows(
            self.eval_images,
            EVAL_BATCH_SIZE,
            workers=config.workers if world.is_main else 0,
            pin_memory=world.device.type == "cuda",
            start_worker=ignore_signals,
        )

    def resume(self, run: RunFolder, report: Report) -> None:
        """Takes up the newest whole checkpoint and puts the folder back to where it was then."""
        checkpoint = self.world.from_main(
            run.newest_checkpoint(report) if self.world.is_main else None
        )
        if checkpoint is None:
            report(f"{run} has no complete checkpoint: starting from the first step")
        else:
            checkpoint.restore(self.model, self.loss_fn, self.optimizer)
            self.step = self.saved_step = checkpoint.step
            self.best = checkpoint.state["best"]
            if self.best and self.best["step"] not in run.steps():
                self.best = None
            report(f"resuming {run} after step {self.step}")
        if self.world.is_main:
            run.go_back(self.step, self.best_step)
            if self.step < self.total_steps and run.config != self.config:
                run.write_config(self.config)

    @property
    def best_step(self) -> int:
        """The step of the best checkpoint: the last one's where there was no evaluation."""
        return int(self.best["step"]) if self.best else self.step

    def fit(self, run: RunFolder, stop: StopRequest) -> Interrupted | None:
        """Trains to the last step, or to the end of the step in which a stop is requested."""
        with ExitStack() as stack:
            progress = stack.enter_context(self.progress(run)) if self.world.is_main else None
            stack.enter_context(self.eval_rows)
            batches = stack.enter_context(self.batches())
            for wait_seconds, (images, labels) in timed(batches):
                lr = self.set_learning_rate()
                loss, loss_seconds = self.train_step(images, labels)
                self.step += 1
                stopping = self.world.any(bool(stop))
                if progress is not None:
                    progress.add(loss, loss_seconds, wait_seconds)
                    self.record(run, progress, lr, stopping)
                    progress.start_clock()
                if stopping and self.step < self.total_steps:
                    return Interrupted(run, self.step)
        return None

    def progress(self, run: RunFolder) -> Progress:
        """What shows and stores how the run goes from the present step."""
        return Progress(
            run,
            first=self.step,
            total=self.total_steps,
            batch_size=self.config.batch_size,
            steps_per_epoch=self.sampler.steps_per_epoch,
            selected_on=self.config.select_on,
            decoding=isinstance(self.images, TransformedImages),
        )

    def record(self, run: RunFolder, progress: Progress, lr: float, stopping: bool) -> None:
        """Evaluates, logs and saves what is due after this step."""
        config, last = self.config, self.step == self.total_steps
        evaluating = last or self.step % config.eval_interval == 0
        saving = last or stopping or self.step % config.checkpoint_interval == 0
        if evaluating or saving:
            self.check_weights()
        metrics = self.evaluate() if evaluating and len(self.eval_dataset) else None
        # recall at 1 is all but perfect among a few held-out classes, where MAP at R still tells
        if metrics and (self.best is None or metrics["map_at_r"] > self.best["map_at_r"]):
            self.best = {"step": self.step, **metrics}
            saving = True
        if evaluating or saving or self.step % config.log_interval == 0:
            progress.write_row(lr, metrics)
        if evaluating:
            draw_curves(run, self.dataset.closed_set)
        if saving:
            self.save(run)

    def check_weights(self) -> None:
        """Raises a `UserError` where training has gone out of bounds without the loss telling."""
        for weight in self.model.parameters():
            if not weight.isfinite().all():
                raise self.diverged("a weight is not finite", self.step)

    def diverged(self, what: str, step: int) -> UserError:
        """The error for training that went out of bounds."""
        kept = f" (the checkpoint of step {self.saved_step} is kept)" if self.saved_step else ""
        return UserError(f"{what} in step {step}: try a lower lr or more warmup-steps{kept}")

    def save(self, run: RunFolder) -> None:
        """Writes a checkpoint of this step, points the links at it and removes older ones."""
        state = {
            "step": self.step,
            "total_steps": self.total_steps,
            "selected_on": self.config.select_on,
            "closed_set": self.dataset.closed_set,
            "best": self.best,
            "versions": versions(self.config.backbone),
        }
        save_checkpoint(run.step_folder(self.step), self.model, self.loss_fn, self.optimizer, state)
        self.saved_step = self.step
        run.link(self.step, self.best_step)
        run.prune(self.config.keep_checkpoints, self.best_step)

    def batches(self) -> Loader:
        """This process's share of the batches from the present step to the last."""
        return Loader(
            StepBatches(self.images, self.sampler, self.config.seed),
            range(self.step, self.total_steps),
            workers=self.config.workers,
            pin_memory=self.world.device.type == "cuda",
            start_worker=ignore_signals,
        )

    def set_learning_rate(self) -> float:
        """Sets the learning rates of the present step and returns the network's.

        After the head's own steps the optimiser begins anew.
        """
        if self.step and self.step == self.config.head_steps:
            self.optimizer.state.clear()
        factor = learning_rate_factor(self.config, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return self.config.lr * factor

    def train_step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """One step on this process's rows of the batch.

        Args:
            images: (B, C, H, W) uint8, as the sampler draws them.
            labels: (B,) int64.

        Returns:
            The loss of the whole batch, and the seconds that it took, forward and backward.
        """
        device, size = self.world.device, self.world.size
        generator = torch.Generator().manual_seed(self.seed_step())
        images, labels = (each.to(device, non_blocking=True) for each in (images, labels))
        if self.augment is not None:
            images = self.augment(images, generator)
        if isinstance(self.sampler, HardNeighbourSampler):
            images, labels = self.with_neighbours(images, labels)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            if self.needs_features:
                embeddings, features = self.network(images, with_features=True)
            else:
                embeddings = self.network(images)

        rows = embeddings.detach().float().requires_grad_()
        all_rows, all_labels = self.world.gather(rows), self.world.gather(labels)
        others = self.beside(features) if self.needs_features else {}
        with DeviceTimer(device) as timer:
            loss = self.criterion(all_rows, all_labels, **others)
            loss.backward()
            told = loss.detach().to("cpu", non_blocking=True)

        # Each process has the gradient of its own rows; the mean over processes must be their sum.
        embeddings.backward(gradient_of(rows, embeddings) * size)
        if others and others["weight"].grad is not None:
            self.model.embedding_weight.grad += others["weight"].grad
        if self.step < self.config.head_steps:
            self.model.backbone.zero_grad()
        timer.wait()  # while a GPU goes on with the network's gradients
        value = told.item()
        if not math.isfinite(value):
            raise self.diverged(f"the loss is {value}", self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value, timer.seconds

    def beside(self, features: Tensor) -> dict[str, Any]:
        """What a loss takes that makes learners differ: features of the whole batch, the weights of
        the embedding layer, apart from the network, and whether these are the head's own steps.
        """
        weight = self.model.embedding_weight.detach().requires_grad_()
        return {
            "features": self.world.gather(features.detach().float()),
            "weight": weight,
            "initializing": self.step < self.config.head_steps,
        }

    def with_neighbours(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """This process's part of the positive pairs and their hard neighbours.

        The present network compares them, in eval mode, so that a step depends on nothing but
        weights, settings and its number; which process has the candidates makes no difference.

        Args:
            images: (B, C, H, W), this process's part of what the sampler drew.
            labels: (B,) int64.
        """
        precision = self.config.precision
        self.model.eval()
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            embeddings = self.model(images).float()
        self.model.train()
        every_label = self.world.gather(labels)
        rows = hard_neighbours(self.world.gather(embeddings), every_label, self.sampler.group)
        rows = rows.chunk(self.world.size)[self.world.rank]
        return self.world.gather(images)[rows], every_label[rows]

    def seed_step(self) -> int:
        """Seeds what is drawn in the present step, and returns the seed."""
        entropy = (self.config.seed, self.step, self.world.rank)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        return seed

    def evaluate(self) -> dict[str, float]:
        """Retrieval within the split that checkpoints are selected on."""
        parts = list(
            embed_batches(
                self.model, self.eval_images, batches=self.eval_rows, device=self.world.device
            )
        )
        embeddings = np.concatenate([embeddings for embeddings, _, _ in parts])
        report = evaluate(
            Features(embeddings, self.eval_dataset.labels), clustering=False, bootstrap=0
        )
        return {name: float(report[name]) for name in ("recall_at_1", "map_at_r")}


def gradient_of(rows: Tensor, embeddings: Tensor) -> Tensor:
    """That of the rows, in the dtype of the embeddings; zeros where the loss does not see them."""
    if rows.grad is None:
        return torch.zeros_like(embeddings)
    return rows.grad.to(embeddings.dtype)


class StepBatches(TorchDataset[Batch]):
    """The batches of a run by step.

    Args:
        images: the training split.
        sampler: of this process's rows of the batches.
        seed: with the step and the place in the batch of all processes it determines an image.
    """

    def __init__(self, images: Images, sampler: Sampler, seed: int):
        self.images, self.sampler, self.seed = images, sampler, seed

    def __getitem__(self, step: int) -> Batch:
        """Images (B, C, H, W) uint8 and labels (B,) int64 of a step."""
        rows = self.sampler.batch(step)
        if not isinstance(self.images, TransformedImages):
            return self.images.take(rows)
        places = range(self.sampler.rows)[self.sampler.part]
        generators = [np.random.default_rng((self.seed, 2, step, place)) for place in places]
        return self.images.take(rows, generators)


def timed(batches: Iterable[Batch]) -> Iterator[tuple[float, Batch]]:
    """Yields each batch with the seconds that it was waited for."""
    iterator = iter(batches)
    while True:
        started = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield time.perf_counter() - started, batch


def load_split(config: TrainConfig, split: str, world: World | None = None) -> AnyDataset:
    """The split of the data set that a run with these settings uses.

    Where files that cannot be read are skipped, they are found here, before anything is trained;
    of the processes of a `world` by the main one.
    """
    dataset = create_dataset(
        config.dataset,
        split=split,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        **parse_options(config.dataset_options),
    )
    if not isinstance(dataset, ImageDataset) or dataset.on_error != "skip":
        return dataset
    if world is None or world.size == 1:
        return dataset.readable(config.workers)
    rows = dataset.readable_rows(config.workers) if world.is_main else None
    return dataset.with_rows(world.from_main(rows), split)


def seeded_model(seed: int, **spec: Any) -> EmbeddingModel:
    """A network as a run with this seed starts with. Seeds torch's own generator."""
    torch.manual_seed(seed)
    return create_model(**spec)


def build_model(
    config: TrainConfig, channels: int, transform: dict[str, Any] | None
) -> EmbeddingModel:
    """The network as a run with these settings starts with, and frozen where they say so."""
    model = seeded_model(config.seed, **model_arguments(config, channels, transform))
    if config.freeze_bn:
        model.freeze_batch_norm()
    if not config.backbone_lr_multiplier:
        model.freeze_backbone()
    return model


def build_loss(config: TrainConfig, device: torch.device, labels: np.ndarray) -> nn.Module:
    """The loss of the settings, tried once: a `UserError` says why it cannot be had there.

    The classifier beside it, where they ask for one, is of the classes in `labels`, (N,) integers.
    """
    options = parse_loss_options(config.loss_options)
    if config.margin is not None:
        options["margin"] = config.margin
    classes = torch.from_numpy(np.unique(labels))
    own = {
        "num_classes": classes,
        "embedding_dim": config.embedding_dim,
        "groups": learner_groups(config),
        "seed": config.seed,
    }
    options |= {name: value for name, value in own.items() if takes(config.loss, name)}
    if takes(config.loss, "impl") or config.impl != "auto":
        options["impl"] = config.impl
    try:
        loss_fn = create_loss(config.loss, **options).to(device)
        three = classes[[0, 0, -1]]
        loss = loss_fn.eval()(torch.zeros(3, config.embedding_dim, device=device), three)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the {config.loss} loss cannot be computed: {error}") from None
    if getattr(loss_fn, "needs_head_steps", False) and not config.head_steps:
        raise UserError(f"the stage of the {config.loss} loss needs head-steps, which are 0")
    if not loss.isfinite():
        raise UserError(f"margin {config.margin}: the {config.loss} loss would be {loss.item()}")
    if config.ce_weight:
        loss_fn = ClassifierLoss(loss_fn, classes, config.embedding_dim, config.ce_weight)
    return loss_fn.to(device).train()
