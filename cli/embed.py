"""`dmlfast embed`: streams a data set through a trained network into an embedding file."""

import json
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from dmlfast.data import parse_options, prepare_images
from dmlfast.data.images import ON_ERROR
from dmlfast.data.loading import Images
from dmlfast.files import TEMPORARY_PREFIX, check_writable
from dmlfast.models import EmbeddingModel, load_model
from dmlfast.ops.boosted import WEIGHTINGS
from dmlfast.recipes import Comparison
from dmlfast.retrieval import PairScorer, export_ann_benchmarks, load_features
from dmlfast.retrieval.embed import RawPixels, embed
from dmlfast.retrieval.store import refuse_existing
from dmlfast.text import counted
from dmlfast.training import (
    RunFolder,
    TrainConfig,
    image_transform,
    images_card,
    load_scorer,
    load_split,
    network_card,
    newest_run,
    resolve_device,
    seeded_model,
    starting_weights,
    training_card,
)


@click.command("embed")
@click.argument("run", required=False)
@click.option("--out", required=True, metavar="FEATS.h5", help="Embedding file to write.")
@click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    help="Checkpoint of the run to embed with.  [default: best]",
)
@click.option(
    "--split",
    type=click.Choice(["test", "val", "train"]),
    default="test",
    show_default=True,
    help="Split of the run's data set to embed.",
)
@click.option(
    "--data-dir",
    metavar="DIR",
    help="Folder with the data set's files, if not the one that the run used.",
)
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    help="Stop at an image that cannot be read, or skip it; by default, as in the run.",
)
@click.option(
    "--untrained", is_flag=True, help="Embed with the run's network as it was before training."
)
@click.option("--raw-pixels", is_flag=True, help="Use the pixels of every image as its embedding.")
@click.option("--normalize", is_flag=True, help="Scale every embedding to length 1.")
@click.option(
    "--weighting",
    type=click.Choice(WEIGHTINGS),
    help="How the learners of --loss bier or a-bier are weighted; by default, as in the run.",
)
@click.option(
    "--learner", type=click.IntRange(min=1), help="Embed with this learner alone, counted from 1."
)
@click.option("--float16", is_flag=True, help="Store the embeddings as float16, in half the bytes.")
@click.option("--binary", is_flag=True, help="Store only the signs, one bit per component.")
@click.option(
    "--keep-float",
    is_flag=True,
    help="With --binary: also store the embeddings themselves, for other programs.",
)
@click.option(
    "--layout",
    type=click.Choice(["features", "ann-benchmarks"]),
    default="features",
    show_default=True,
    help="Contents of the file: all that dmlfast needs, or what ann-benchmarks reads.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Images that go through the network at a time.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0, max=1024),
    default=0,
    show_default=True,
    help="Processes that decode and transform images; data sets in memory need none.",
)
@click.option(
    "--cache-images", metavar="DIR", help="Cache decoded and resized images in DIR for reuse."
)
@click.option(
    "--device", default="auto", show_default=True, help="Device: auto, cpu, cuda or cuda:N."
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(**options: Any) -> None:
    """Write the embeddings of a data set to an HDF5 file.

    RUN is a run folder; by default, the most recently trained one under ./runs. The images are
    processed batch by batch, so memory does not grow with the data set, and the file appears only
    once it is complete. --untrained and --raw-pixels give the baselines that a trained network has
    to beat.

    For a run with --loss pddm the file also holds the learned unit, for eval --rank-by pddm.
    """
    wanted = Wanted(**options)
    refuse_contradictions(wanted)
    place = resolve_device(wanted.device)
    folder = RunFolder(wanted.run) if wanted.run else newest_run()
    if not wanted.run:
        click.echo(f"embedding with the newest run, {folder}", err=True)
    config = config_of(folder, wanted)
    check_writable(wanted.out)  # before all images are decoded
    refuse_existing(wanted.out, wanted.overwrite)
    dataset = load_split(config, wanted.split)
    if wanted.raw_pixels:
        model: nn.Module = RawPixels()
        source: dict[str, Any] = {"model": "raw pixels"}
        transform = image_transform(config, dataset)
    else:
        make = untrained_model if wanted.untrained else trained_model
        model, source = make(folder, wanted.name)
        model.choose_learners(wanted.weighting, wanted.learner)
        transform = model.spec["transform"]
    images = prepare_images(
        dataset,
        transform=transform,
        cache_dir=wanted.cache_images,
        workers=wanted.workers,
        progress=sys.stderr.isatty(),
    )
    attributes = {
        **source,
        **images_card(config, transform),
        "run": str(folder),
        "data_dir": config.with_absolute_folders().data_dir,
        **comparison_of(folder, config, wanted),
    }
    scorer = scorer_of(folder, wanted)
    write = embed if wanted.layout == "features" else embed_for_ann_benchmarks
    count = write(
        model.to(place),
        images,
        wanted.out,
        batch_size=wanted.batch_size,
        workers=wanted.workers,
        device=place,
        dtype="float16" if wanted.float16 else "float32",
        normalize=wanted.normalize,
        binary=wanted.binary,
        keep_float=wanted.keep_float,
        attributes=attributes,
        scorer=scorer,
        overwrite=wanted.overwrite,
        progress=sys.stderr.isatty(),
    )
    if wanted.as_json:
        result = {"out": wanted.out, "images": count}
        result |= {"dataset": config.dataset, "split": wanted.split}
        result["pddm_unit"] = scorer is not None
        click.echo(json.dumps(result | attributes))
        return
    of = f"of the {wanted.split} split of {config.dataset}"
    click.echo(f"{wanted.out}: {counted(count, 'image')} {of}")
    if wanted.layout == "features":
        click.echo(f"next: dmlfast eval {shlex.quote(wanted.out)}")
    if scorer:
        click.echo("with the learned unit: eval and search accept --rank-by pddm")


@dataclass(frozen=True)
class Wanted:
    """The options of the command line, by their names."""

    run: str | None
    out: str
    checkpoint: str | None
    split: str
    data_dir: str | None
    on_error: str | None
    untrained: bool
    raw_pixels: bool
    normalize: bool
    weighting: str | None
    learner: int | None
    float16: bool
    binary: bool
    keep_float: bool
    layout: str
    batch_size: int
    workers: int
    cache_images: str | None
    device: str
    overwrite: bool
    as_json: bool

    @property
    def name(self) -> str:
        """Of the checkpoint."""
        return self.checkpoint or "best"

    @property
    def trained(self) -> bool:
        """Whether it is the network that was trained."""
        return not (self.untrained or self.raw_pixels)


def refuse_contradictions(wanted: Wanted) -> None:
    """Raises a usage error for options that exclude each other."""
    binary, keep_float, layout = wanted.binary, wanted.keep_float, wanted.layout
    if wanted.untrained and wanted.raw_pixels:
        raise click.UsageError("--untrained and --raw-pixels cannot be used together")
    if wanted.checkpoint and not wanted.trained:
        baseline = "--untrained" if wanted.untrained else "--raw-pixels"
        raise click.UsageError(f"{baseline} and --checkpoint cannot be used together")
    if wanted.raw_pixels and (wanted.weighting or wanted.learner):
        raise click.UsageError("--raw-pixels has no learners: leave --weighting and --learner out")
    if wanted.weighting and wanted.learner:
        raise click.UsageError("--weighting and --learner cannot be used together")
    if keep_float and not binary:
        raise click.UsageError("--keep-float needs --binary: embeddings are stored without it")
    if binary and wanted.float16 and not keep_float:
        raise click.UsageError("--binary and --float16 can only be used together with --keep-float")
    if binary and wanted.normalize and not keep_float:
        raise click.UsageError("--normalize does not change any sign: leave it out with --binary")
    if (binary or wanted.float16) and layout != "features":
        name = "--binary" if binary else "--float16"
        raise click.UsageError(f"{name} needs --layout features: ann-benchmarks takes float32")


def config_of(folder: RunFolder, wanted: Wanted) -> TrainConfig:
    """The run's settings, with the data set's as they are wanted now."""
    config = folder.config
    if wanted.data_dir is not None:
        config = replace(config, data_dir=wanted.data_dir)
    if wanted.on_error is not None:
        options = parse_options(config.dataset_options) | {"on_error": wanted.on_error}
        text = ",".join(f"{name}={value}" for name, value in options.items())
        config = replace(config, dataset_options=text)
    return config


def comparison_of(folder: RunFolder, config: TrainConfig, wanted: Wanted) -> dict[str, Any]:
    """What the run's recipe publishes, and how these embeddings differ, as attributes."""
    if wanted.split != "test" or not wanted.trained:
        return {}
    other_weights = wanted.weighting not in (None, config.weighting)
    changes = {
        "embeddings scaled to length 1": wanted.normalize,
        "sign bits alone": wanted.binary,
        f"learner {wanted.learner} alone": bool(wanted.learner),
        f"learners weighted as {wanted.weighting}": other_weights,
    }
    comparison = Comparison.of(folder, tuple(name for name, made in changes.items() if made))
    return comparison.to_attributes() if comparison else {}


def embed_for_ann_benchmarks(
    model: nn.Module, dataset: Images, out: str, *, overwrite: bool, **settings: Any
) -> int:
    """Embeds into an embedding file that is thrown away, and exports what it holds to `out`."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=Path(out).parent) as folder:
        features = Path(folder) / "features.h5"
        images = embed(model, dataset, features, **settings)
        export_ann_benchmarks(load_features(features), out, overwrite=overwrite)
    return images


def scorer_of(run: RunFolder, wanted: Wanted) -> PairScorer | None:
    """The metric unit of a checkpoint, where it has one that scores the rows that are stored."""
    if wanted.layout != "features" or wanted.binary or not wanted.trained:
        return None
    scorer = load_scorer(run.checkpoint(wanted.name).folder, run.config)
    if scorer and wanted.normalize and not (scorer.normalize_embeddings or run.config.normalize):
        reason = "it scores embeddings as they are, not scaled to length 1"
        click.echo(f"the pddm unit is not stored: {reason}", err=True)
        return None
    return scorer


def trained_model(run: RunFolder, name: str) -> tuple[EmbeddingModel, dict[str, Any]]:
    """The network of a checkpoint, and where its embeddings come from as attributes of the file."""
    checkpoint, config = run.checkpoint(name), run.config
    model = load_model(checkpoint.folder)
    return model, {
        "model": config.backbone,
        **network_card(config, model),
        **training_card(config, checkpoint, name),
        "checkpoint": str(checkpoint.folder),
        "checkpoint_sha256": checkpoint.model_sha256,
    }


def untrained_model(run: RunFolder, name: str) -> tuple[EmbeddingModel, dict[str, Any]]:
    """The network as the run started with it, and where its embeddings come from."""
    spec, config = load_model(run.checkpoint(name).folder).spec, run.config
    start = {"weights": starting_weights(config), "head_init": config.head_init}
    model = seeded_model(config.seed, **start, **spec)
    return model, {
        "model": f"{config.backbone}, untrained",
        **network_card(config, model),
        "step": 0,
    }
