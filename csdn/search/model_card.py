"""The model card: what a model was trained on, what it can do, and what it is not for, as Markdown.

A card goes with every promoted model (csdn.retraining.registry commits MODEL_CARD.md), with every export, and
`csdn card` prints one. It states what the stages have written; what is not there is said to be missing.
Labels of people are not in it. Everything else that comes from outside is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from csdn.data.catalog import MODALITIES
from csdn.data.outputs import read_csv
from csdn.evaluation.bootstrap import bootstrap_people, sums_of_people
from csdn.evaluation.headline import notes, open_set_lines
from csdn.ingest.forgotten import TOMBSTONE
from csdn.ingest.ledger import LEDGER, Status, read_ledger
from csdn.params import leaves, load_params
from csdn.runtime.documents import expected_in, read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write, file_sha256
from csdn.runtime.sanitize import as_markdown
from csdn.training.champion import CHAMPION, read_champion

CARD = "MODEL_CARD.md"
MODEL = Path("models/embedding")  # the model that a project's metrics and parameters belong to
WEIGHTS = "model.safetensors"
THRESHOLDS = Path("evaluation/thresholds.json")
NETWORK = ("clip", "clip_sha256", "image_size", "stem", "integration", "identities")  # of config.json, shown
PARAMETERS = ("seed", "data", "model", "prompts", "embedding", "warm_start", "training", "evaluation")
FIGURES = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}
RATES = (0.1, 0.01)  # false-positive identification rates whose thresholds are shown
LONGEST = 50  # rows of the tables of cameras and of drops
CONFIDENCE, SAMPLES = 0.95, 2000  # of the intervals, and of their bootstrap
OTHER_MODEL = "the model that this project has trained is another one"
NO_MODEL = "this project has no trained model here"


def model_card(root: Path, model: Path) -> str:
    """The card of the model in folder `model`; data and figures are those of the project in `root`.

    If the project has not trained the model here, it is the card that was committed with its promotion.
    Raises UserError where there is no model, or a file that the stages wrote is damaged.
    """
    weights = model / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights}: no such file; name the folder of a saved model")
    if (committed := _committed(root, file_sha256(weights))) is not None:
        return committed
    config = read_json(model / "config.json")
    with expected_in(model / "config.json", "train the model again"):
        values = _values(root, file_sha256(weights), config.get("model"), config.get("people"))
    environment = Environment(
        loader=PackageLoader("csdn.search", "templates"),
        finalize=lambda value: as_markdown(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2").render(values)


def _committed(root: Path, model_hash: str) -> str | None:
    """The project's MODEL_CARD.md if it is of this model, and the project has another one, or none, now."""
    trained = root / MODEL / WEIGHTS
    if not (root / CARD).is_file() or (trained.is_file() and file_sha256(trained) == model_hash):
        return None
    card = (root / CARD).read_text(encoding="utf-8")
    return card if model_hash in card.partition("\n## ")[0] else None


def write_card(root: Path, model: Path, path: Path) -> None:
    """Write `model_card` to a file, atomically."""
    text = model_card(root, model)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _values(
    root: Path, model_hash: str, network: Mapping[str, Any] | None, people: Sequence[str] | None
) -> dict[str, Any]:
    """The template's values, by section; None for a section whose files are missing or of another model."""
    weights = root / MODEL / WEIGHTS
    own = weights.is_file() and file_sha256(weights) == model_hash
    judged = _thresholds_model(root / THRESHOLDS)
    params = load_params(root / "params.yaml") if own else None
    if not own:
        why = OTHER_MODEL if weights.is_file() else NO_MODEL
        missing = dict.fromkeys(("data", "evaluation", "parameters"), why)
    else:
        files = "metrics/evaluation.json or evaluation/ is not there"
        missing = {
            "data": "metrics/ingest.json is not there",
            "evaluation": "the evaluation is that of another model" if judged else files,
        }
    return {
        "hash": model_hash,
        "network": network and {name: network[name] for name in NETWORK},
        "forgotten": sum(str(name).startswith(TOMBSTONE) for name in people or ()),
        "champion": _champion(root, model_hash),
        "start": read_champion(root).start if own and (root / CHAMPION).is_file() else None,
        "data": _data(root) if own else None,
        "figures": _figures(root) if own and judged == model_hash else None,
        "thresholds": _thresholds(root / THRESHOLDS) if own and judged == model_hash else None,
        "parameters": _parameters(params) if params else None,
        "weights": _start_weights(network, params),
        "missing": missing,
    }


def _champion(root: Path, model_hash: str) -> Any:
    """champion.json's entry if it names this model."""
    champion = read_champion(root).champion if (root / CHAMPION).is_file() else None
    return champion if champion and champion.embedding == model_hash else None


def _parameters(params: Any) -> list[tuple[str, str]]:
    """(dotted key, value) of what decides the model and its figures."""
    values = params.model_dump(mode="json")
    decisive = [*leaves({name: values[name] for name in PARAMETERS})]
    decisive.append(("ingest.grey16_range", values["ingest"]["grey16_range"]))
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in decisive]


def _start_weights(network: Mapping[str, Any] | None, params: Any) -> str:
    """ "csdn-small", "openai", or "" where it is not known."""
    if network and network["clip"] == "csdn-small":
        return "csdn-small"
    return "openai" if params and params.model.pretrained == "openai" else ""


# Data: the counts of ingest, and the drops of the ledger.


def _data(root: Path) -> dict[str, Any] | None:
    path = root / "metrics/ingest.json"
    if not path.is_file():
        return None
    ingest, advice = read_json(path), "`dvc repro ingest` makes it"
    with expected_in(path, advice):
        cameras = [
            (camera, modality, images)
            for modality in MODALITIES
            for camera, images in ingest["cameras"][modality].items()
        ]
        held = {drop["id"] for drop in ingest["drops"]["held"]}
        counts = {name: ingest[name] for name in ("people", "images")}
    used = [
        drop for drop in read_ledger(root / LEDGER) if drop.status is Status.ACCEPTED and drop.id not in held
    ]
    shown = [
        {"id": drop.id, "address": drop.address, "layout": drop.layout, "recorded": _recorded(root, drop.id)}
        for drop in used[:LONGEST]
    ]
    return counts | {
        "cameras": cameras[:LONGEST],
        "more_cameras": len(cameras[LONGEST:]),
        "drops": shown,
        "more_drops": len(used[LONGEST:]),
    }


def _recorded(root: Path, drop: str) -> str:
    """The first and the last time of a drop's images, as its manifest gives them; empty if it gives none."""
    path = root / f"data/index/{drop}.parquet"
    if not path.is_file():
        return ""
    times = pc.min_max(pq.read_table(path, columns=["captured_at"])["captured_at"]).as_py()
    return f"{times['min']} to {times['max']}" if times["min"] else ""


# Figures: those of the evaluation, and intervals over people.


def _figures(root: Path) -> dict[str, Any] | None:
    path = root / "metrics/evaluation.json"
    pairs, queries = root / "evaluation/camera_pairs.csv", root / "evaluation/queries.parquet"
    if not all(file.is_file() for file in (path, pairs, queries)):
        return None
    figures, rows, intervals = read_json(path), read_csv(pairs), _intervals(queries)
    with expected_in(path, "`dvc repro evaluate` makes it"):
        directions = [
            {
                "name": name.replace("_", " ").capitalize(),
                "counts": counts,
                "rows": list(_rows(figures, name, intervals)),
                "pairs": [_pair(row) for row in rows if row["direction"] == name],
            }
            for name, counts in figures["counts"].items()
        ]
        trials = max(counts["trials"] for counts in figures["counts"].values())
        open_set, said = list(open_set_lines(figures)), notes(figures["counts"])
    return {"directions": directions, "trials": trials, "open_set": open_set, "notes": said}


def _rows(
    figures: Mapping[str, Any], direction: str, intervals: Mapping[tuple[str, str], str]
) -> Iterator[dict[str, str]]:
    for key, name in FIGURES.items():
        methods = {
            method: _with_deviation(figures[method][direction][key])
            for method in ("trained", "clip", "chance")
        }
        yield {"name": name, "interval": intervals.get((direction, key), ""), **methods}


def _with_deviation(figure: Mapping[str, float | None]) -> str:
    if figure["mean"] is None:
        return "–"
    return f"{figure['mean']:.1f}" + ("" if figure["std"] is None else f" ± {figure['std']:.1f}")


def _pair(row: Mapping[str, str]) -> dict[str, str]:
    """A row of camera_pairs.csv with one digit after the point."""
    return {**row, **{name: row[name] and f"{float(row[name]):.1f}" for name in ("rank1", "mAP")}}


def _intervals(path: Path) -> dict[tuple[str, str], str]:
    """(direction, figure) -> "20.2 (14.5 to 25.9)", in the first gallery, over the people of its queries."""
    table = pq.read_table(path, columns=["direction", "person", "first_rank", "ap"]).drop_null()
    found = {}
    for direction in pc.unique(table["direction"]).to_pylist():
        rows = table.filter(pc.equal(table["direction"], direction))
        people = np.unique(rows["person"].to_numpy(), return_inverse=True)[1]
        values = np.stack([100.0 * (rows["first_rank"].to_numpy() == 1), rows["ap"].to_numpy()], axis=1)
        sums = sums_of_people([(values, people)], int(people.max()) + 1)
        ends = bootstrap_people(sums, SAMPLES, CONFIDENCE, np.random.default_rng(0))
        for n, figure in enumerate(("rank1", "mAP")):
            found[direction, figure] = f"{ends.value[n]:.1f} ({ends.low[n]:.1f} to {ends.high[n]:.1f})"
    return found


# Thresholds: csdn.evaluation.open_set.


def _thresholds_model(path: Path) -> str | None:
    """The hash of the model that the thresholds are of; None without thresholds."""
    if not path.is_file():
        return None
    from csdn.evaluation.open_set import read_thresholds

    return read_thresholds(path).model


def _thresholds(path: Path) -> list[dict[str, Any]]:
    """For each modality of the queries: the threshold at each of RATES, for the evaluation's galleries."""
    from csdn.evaluation.open_set import read_thresholds

    found, rows = read_thresholds(path), []
    for modality in MODALITIES:
        try:
            people = found.gallery_people(modality)
        except UserError:  # too few test people, or the protocol lacks this direction
            people = None
        cells = [_threshold(found, modality, rate, people) for rate in RATES]
        rows.append({"modality": modality, "people": people or "–", "thresholds": cells})
    return rows


def _threshold(thresholds: Any, modality: str, rate: float, people: int | None) -> str:
    try:
        return f"{thresholds.threshold(modality, rate, people):.4f}" if people else "–"
    except UserError:
        return "– (too few test people)"
