"""The command `csdn`: its groups of commands, and how it ends when one fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from csdn import __version__
from csdn.cli.benchmarks import average_command, benchmark, evaluate_features, import_published, mini_dataset
from csdn.cli.curation import check_labels, drift, relabel, suggest
from csdn.cli.data import accept, add, demo_images, drops, reject, sync
from csdn.cli.export import card, export
from csdn.cli.privacy import forget
from csdn.cli.retraining import fetch_champion_command, gate, history, promote, retrain, rollback
from csdn.cli.search import gallery_app, search
from csdn.cli.service import serve
from csdn.cli.versions import package_versions
from csdn.params import load_params
from csdn.runtime.errors import UserError, explain_os_error
from csdn.runtime.process import exit_with_error, reach_loopback_directly, spin_briefly

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=True,  # an unknown command is answered with the nearest ones
)
DATA, PIPELINE, SETUP = "Camera data", "Stages, one by one (dvc repro runs them all)", "Set-up"
BENCHMARKS = "Public benchmarks (docs/public-benchmarks.md)"
USE = "Use of a model (docs/search.md, docs/export.md)"
CARE = "Care of data (docs: drift.md, labels.md, suggestions.md, privacy.md)"
RETRAINING = "Retraining (docs/gate.md, docs/registry.md)"
STAGES = {
    "ingest": "Accepted drops of the ledger -> WebDataset shards and index.",
    "prompts": "Stage 1: text tokens of each person and modality, and their integration.",
    "embedding": "Stage 2: the image encoder.",
    "evaluate": "Figures of the trained model and of the baselines on the test people.",
    "report": "The report of data, training and evaluation: report/index.html.",
}


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version, and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="With --version: also those of the main packages.")
    ] = False,
) -> None:
    """Train and evaluate visible-infrared person re-identification. Run it in the project's root folder."""
    if version:
        print(f"csdn {__version__}", *(package_versions() if verbose else ()), sep="\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.BadParameter("it goes with --version; csdn --help lists the commands", param_hint="-v")


def main() -> None:
    """Run a command; mistakes of the user and faults of the machine are shown without a traceback."""
    reach_loopback_directly()
    spin_briefly()
    try:
        app()
    except UserError as error:
        exit_with_error(error)
    except (OSError, MemoryError, ModuleNotFoundError) as error:
        if (message := explain_os_error(error)) is None:
            raise
        exit_with_error(message)


def stage_command(name: str) -> Callable[[], None]:
    def command() -> None:
        if not Path("stages", f"{name}.py").is_file():
            raise UserError(f"stages/{name}.py is not here; run the command in the project's root folder")
        sys.stdout.flush()
        # Replaces this process, so that the stage runs as it does under DVC.
        os.execv(sys.executable, [sys.executable, "-m", f"stages.{name}"])

    command.__name__, command.__doc__ = name, STAGES[name]
    return command


def summary() -> None:
    """Show the summary of the last run again: its figures, how long it took, where the report is."""
    from csdn.cli.summary import show

    show()


def preset(
    name: Annotated[str, typer.Argument(help="demo, cameras, sysu, regdb or llcm")],
    small: Annotated[bool, typer.Option(help="The small CLIP and a short training: minutes.")] = False,
) -> None:
    """Set params.yaml to a preset, in place; comments are kept."""
    from csdn.cli.presets import apply_preset

    print(*apply_preset(name, Path("params.yaml"), small), sep="\n")


def fetch_clip(
    source: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint on disk instead of a download.")
    ] = None,
) -> None:
    """Fetch CLIP's weights to the file that params.yaml names (model.weights), as safetensors.

    The presets sysu, regdb, llcm and cameras use OpenAI's RN50, from Hugging Face: at most 0.41 GB. On a
    machine without a network, give the file with --from. The preset demo needs no download.
    """
    from csdn.model import convert, load_clip
    from csdn.model import fetch_clip as fetch

    model = load_params().model
    out = Path(model.weights)
    if source is not None:
        convert(source, model.clip, out)
    elif model.pretrained is None:
        raise UserError("params.yaml: model.pretrained is empty; name an open_clip tag, such as openai")
    else:
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # it would print three lines a retry; the error at the end says it all
        fetch(model.clip, model.pretrained, out)
    print(f"{out}: {model.clip}, SHA-256 {load_clip(model.clip, out).sha256}")


def doctor() -> None:
    """Check packages, device, CLIP's weights, ledger and object stores, and say how to fix problems."""
    from csdn.cli.doctor import show

    raise typer.Exit(0 if show() else 1)


for group, commands in {
    DATA: (add, sync, drops, accept, reject, demo_images),
    PIPELINE: (*map(stage_command, STAGES), summary),
    BENCHMARKS: (benchmark, mini_dataset, evaluate_features, average_command),
    USE: (search, serve, export, card),
    CARE: (drift, check_labels, relabel, suggest, forget),
    RETRAINING: (retrain, gate, history, promote, rollback, fetch_champion_command),
    SETUP: (preset, fetch_clip, import_published, doctor),
}.items():
    for function in commands:
        name = function.__name__.removesuffix("_command").replace("_", "-")
        app.command(name, rich_help_panel=group)(function)
app.add_typer(gallery_app, name="gallery", rich_help_panel=USE)
