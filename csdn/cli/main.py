"""`csdn`: the pipeline's functions by hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from csdn.cli.ablation import ablation, table_command
from csdn.cli.benchmarks import average_command, benchmark, evaluate_features, import_published, mini_dataset
from csdn.cli.data import accept, add, drops, reject, sync
from csdn.cli.retraining import fetch_champion_command, gate, history, promote, retrain, rollback
from csdn.params import load_params
from csdn.runtime.errors import UserError, explain_os_error
from csdn.runtime.process import reach_loopback_directly

app = typer.Typer(
    help="Train and evaluate visible-infrared person re-identification. Run it in the project's root folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DATA, PIPELINE, SETUP = "Camera data", "Stages, one by one (dvc repro runs them all)", "Set-up"
BENCHMARKS = "Public benchmarks (docs/public-benchmarks.md)"
RETRAINING = "Retraining (docs/gate.md, docs/registry.md)"
ABLATION = "Ablation: what each part of the method brings"

for command in (add, sync, drops, accept, reject):
    app.command(rich_help_panel=DATA)(command)
for command in (benchmark, mini_dataset, evaluate_features):
    app.command(rich_help_panel=BENCHMARKS)(command)
app.command("average", rich_help_panel=BENCHMARKS)(average_command)
for command in (retrain, gate, history, promote, rollback):
    app.command(rich_help_panel=RETRAINING)(command)
app.command("fetch-champion", rich_help_panel=RETRAINING)(fetch_champion_command)
app.command("import-published", rich_help_panel=SETUP)(import_published)


@app.command("demo-images", rich_help_panel=DATA)
def demo_images(
    out: Annotated[Path, typer.Option(help="Folder to make; it must be empty or missing.")],
    name: Annotated[str, typer.Option(help="Which of the built-in sets.")] = "demo",
) -> None:
    """Write the built-in people as a drop of images: the layout that your own cameras should have."""
    from csdn.synthetic.sets import write_images

    write_images(name, out)
    print(f"{out}: written. Try it as a drop of your own: csdn add {out}")


def _stage(name: str) -> None:
    """Become the stage's own process, so that by hand and under DVC the same thing runs."""
    if not Path("stages", f"{name}.py").is_file():
        raise UserError(f"stages/{name}.py is not here; run the command in the project's root folder")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", f"stages.{name}"])


@app.command(rich_help_panel=PIPELINE)
def ingest() -> None:
    """Accepted drops of the ledger -> WebDataset shards and index."""
    _stage("ingest")


@app.command(rich_help_panel=PIPELINE)
def prompts() -> None:
    """Stage 1: text tokens of each person and modality, and their integration."""
    _stage("prompts")


@app.command(rich_help_panel=PIPELINE)
def embedding() -> None:
    """Stage 2: the image encoder."""
    _stage("embedding")


@app.command(rich_help_panel=PIPELINE)
def evaluate() -> None:
    """Figures of the trained model and of the baselines on the test people."""
    _stage("evaluate")


@app.command(rich_help_panel=PIPELINE)
def report() -> None:
    """One page that shows it all: report/index.html."""
    _stage("report")


@app.command(rich_help_panel=PIPELINE)
def summary() -> None:
    """Show again how the last run ended: its figures, how long it took, where the report is."""
    from csdn.cli.summary import show

    show()


app.command(rich_help_panel=ABLATION)(ablation)
app.command("table", rich_help_panel=ABLATION)(table_command)


@app.command(rich_help_panel=SETUP)
def preset(
    name: Annotated[str, typer.Argument(help="demo, cameras, sysu, regdb or llcm")],
    small: Annotated[bool, typer.Option(help="The small CLIP and little training: minutes.")] = False,
) -> None:
    """Set params.yaml to a preset, in place; comments stay."""
    from csdn.cli.presets import apply_preset

    for line in apply_preset(name, Path("params.yaml"), small):
        print(line)


@app.command("fetch-clip", rich_help_panel=SETUP)
def fetch_clip(
    source: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint on disk instead of a download.")
    ] = None,
) -> None:
    """Bring CLIP's weights to where params.yaml expects them (model.weights), as safetensors."""
    from csdn.model import convert, load_clip
    from csdn.model import fetch_clip as fetch

    model = load_params().model
    out = Path(model.weights)
    if source is not None:
        convert(source, model.clip, out)
    elif model.pretrained is None:
        raise UserError("params.yaml: model.pretrained is empty; name an open_clip tag, such as openai")
    else:
        fetch(model.clip, model.pretrained, out)
    print(f"{out}: {model.clip}, SHA-256 {load_clip(model.clip, out).sha256}")


@app.command(rich_help_panel=SETUP)
def doctor() -> None:
    """What is installed, which device, whether CLIP's weights are there, and what to do about it."""
    from csdn.cli.doctor import show

    raise typer.Exit(0 if show() else 1)


def main() -> None:
    """Entry point: a user's mistake, or what the machine lacks, is shown as text, not as a traceback."""
    reach_loopback_directly()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except (OSError, MemoryError) as error:
        fault = explain_os_error(error)
        if fault is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
    else:
        return
    sys.exit(1)
