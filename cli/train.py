"""`dmlfast train`: trains a network into a run folder."""

import dataclasses
import json
import shlex
from typing import Any

import click
from dmlfast.cli.card import card_lines, comparison_lines
from dmlfast.cli.options import (
    GroupedCommand,
    given_settings,
    load_config_file,
    refuse_idle,
    setting_options,
)

from dmlfast.models import load_model
from dmlfast.recipes import Comparison, load_recipe
from dmlfast.text import counted
from dmlfast.training import (
    Interrupted,
    RunFolder,
    TrainConfig,
    images_card,
    is_main_process,
    network_card,
    train,
    training_card,
)
from dmlfast.training.config import FIELDS, option_name

RESUMABLE = ", ".join(
    f"--{option_name(name)}" for name, field in FIELDS.items() if field.metadata["resumable"]
)


@click.command("train", cls=GroupedCommand)
@click.option(
    "-c",
    "--config",
    "config_path",
    metavar="RECIPE|FILE.yaml",
    is_eager=True,
    callback=load_config_file,
    help="A recipe from `dmlfast recipes`, or a file of settings named like the options below; the"
    " command line takes precedence.",
)
@click.option("--out", metavar="RUN", help="Run folder; by default runs/<date>-<loss>-<dataset>.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue from the newest complete checkpoint in --out, with the settings of the run, of"
    f" which only {RESUMABLE} and the on_error of --dataset-options may be changed.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@setting_options
@click.pass_context
def command(
    ctx: click.Context,
    config_path: str | None,
    out: str | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a network and write checkpoints, a log and curves into a run folder.

    Without options it trains with the lifted structured loss on the glyphs; -c lifted-cub, or
    another recipe, with the settings of a paper. Ctrl-C saves a checkpoint and stops; --resume with
    the same --out continues. Under torchrun, all processes train one network together.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite cannot be used together")
    if resume and out is None:
        raise click.UsageError("--resume needs the folder of the run: --out RUN")
    given = given_settings(ctx, settings)
    resumed = dataclasses.replace(RunFolder(out).config, **given) if out and resume else None
    config = resumed or TrainConfig(**given)
    refuse_idle(ctx, config)
    if config.recipe and not resume and is_main_process():
        for line in load_recipe(config.recipe).missing(config):
            click.echo(f"{config.recipe}: {line}", err=True)
    try:
        run = train(
            config,
            out,
            resume=resume,
            overwrite=overwrite,
            report=lambda line: click.echo(line, err=True),
        )
    except Interrupted as stop:
        if is_main_process():
            click.echo(
                f"{stop}; to continue: dmlfast train --out {shlex.quote(str(stop.run))} --resume",
                err=True,
            )
        raise
    if is_main_process():
        click.echo(json.dumps(result(run)) if as_json else summary(run))


def result(run: RunFolder) -> dict[str, Any]:
    """What a run came to, as plain values."""
    last, best, config = run.checkpoint("last"), run.checkpoint("best"), run.config
    model = load_model(best.folder)
    comparison = Comparison.of(run)
    return {
        "run": str(run),
        "steps": last.step,
        "selected_on": last.state["selected_on"],
        "closed_set": last.state.get("closed_set", False),
        "best": last.state["best"],
        "checkpoint": str(best.folder),
        "card": {
            "model": config.backbone,
            "embedding_dim": config.embedding_dim,
            **network_card(config, model),
            **images_card(config, model.spec["transform"]),
            **training_card(config, best, "best"),
        },
        **({"recipe": comparison.to_plain()} if comparison else {}),
    }


def summary(run: RunFolder) -> str:
    """What a run came to, and what to type next, in a few lines."""
    values, comparison = result(run), Comparison.of(run)
    curves = f", curves in {run.curves_path}" if run.curves_path.exists() else ""
    card = values["card"]
    lines = [
        f"{run}: {counted(values['steps'], 'step')}{curves}",
        f"{card['model']}, {counted(card['embedding_dim'], 'dimension')}",
        *card_lines(card),
    ]
    best = values["best"]
    if best:
        on_test, closed_set = values["selected_on"] == "test", values["closed_set"]
        held_out = "images of the training classes" if closed_set else "training classes"
        what = "images" if closed_set else "classes"
        where = f"TEST {what}, selected on them" if on_test else f"held-out {held_out}"
        lines.append(
            f"best: recall@1 {best['recall_at_1']:.4f}, MAP@R {best['map_at_r']:.4f} "
            f"on {where}, step {best['step']}"
        )
    if comparison:
        lines += comparison_lines(comparison, values=True)
    lines.append(f"next: dmlfast embed {shlex.quote(str(run))} --out feats.h5")
    return "\n".join(lines)
