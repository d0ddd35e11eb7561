"""What a run shows on its page in Prefect: data, figures, curves, the report, the gate's decision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from csdn.params import load_params
from csdn.report.page import published_at
from csdn.retraining.notify import cmc_picture, data_page, gate_page, headline_page
from csdn.training.champion import Champion


def show_data(folder: Path) -> None:
    """What ingest found, as soon as it is known."""
    with _harmless("the data"):
        text = data_page(_json(folder / "metrics/ingest.json"))
        create_markdown_artifact(text, key="data", description="What was ingested")


def show_figures(folder: Path, champion: Champion | None) -> None:
    """The figures beside the champion's, with the curves, and where the report is."""
    with _harmless("the figures"):
        figures = headline_page(_json(folder / "metrics/headline.json"), champion)
        # An image artifact would write the picture's address, which is the picture, below it.
        picture = f"![CMC]({cmc_picture(folder / 'evaluation/cmc.csv')})"
        create_markdown_artifact(f"{figures}\n\n{picture}", key="figures", description="On the test people")
    with _harmless("the report"):
        page, store = (
            (folder / "report/index.html").absolute(),
            load_params(folder / "params.yaml").report.store,
        )
        address = published_at(page, store) if store else page.as_uri()
        create_link_artifact(address, key="report", link_text=address, description="The whole report")


def show_gate(folder: Path) -> None:
    """The gate's decision and its reasons."""
    with _harmless("the gate's decision"):
        text = gate_page(_json(folder / "metrics/gate.json"))
        create_markdown_artifact(text, key="gate", description="The gate's decision")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """No run fails because something could not be shown."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("%s could not be shown: %s", what, error)
