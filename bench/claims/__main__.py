"""`python -m dmlfast.bench.claims NAME`: tests a claim."""

from pathlib import Path

import click
from dmlfast.bench.claims import CLAIMS, get_claim
from dmlfast.bench.machine import cores

from dmlfast.errors import UserError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, required=True, metavar=f"[{'|'.join(CLAIMS)}]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("claims"),
    show_default=True,
    help="Folder for NAME.csv, NAME.md and NAME.png. Runs that NAME.csv has are not run again.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=cores(),
    show_default="cores",
    help="Runs at a time.",
)
def command(names: tuple[str, ...], out: Path, jobs: int) -> None:
    """Test claims: tune every arm on validation classes, train it from several seeds, compare."""
    from dmlfast.bench.claims.report import save_picture, table
    from dmlfast.bench.claims.study import study

    for claim in [get_claim(name) for name in names]:
        click.echo(f"{claim.title}\nHypothesis: {claim.hypothesis}\nBudget: {claim.budget}.\n")
        runs = study(
            claim, out / f"{claim.name}.csv", jobs, lambda line: click.echo(line, err=True)
        )
        text = table(claim, runs)
        (out / f"{claim.name}.md").write_text(text + "\n", encoding="utf-8")
        save_picture(claim, runs, out / f"{claim.name}.png")
        click.echo(text)


def main() -> None:
    """Runs the command; an error is one line."""
    try:
        command()
    except UserError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
