"""Commands of the care of data: csdn drift, check-labels, relabel, suggest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csdn.cli.data import DropId
from csdn.cli.search import Model, embedder_for, model_folder
from csdn.data.outputs import refused_in_words
from csdn.data.shards import shards_at
from csdn.ingest.identities import read_aliases
from csdn.ingest.ledger import SHORT, Status, find_drop, read_ledger
from csdn.ingest.sync import DATA
from csdn.params import load_params
from csdn.runtime.console import progress
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import escape_control_chars

if TYPE_CHECKING:
    from csdn.curation.known_people import KnownPeople, TestImages
    from csdn.search.embedder import Embedder
    from csdn.search.images import ImageListing

EVALUATION = Path("evaluation")


def drift(
    drop: DropId,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: Model = None,
) -> None:
    """Compare each camera of a drop with the images of training and test: what has changed?

    The drop must be in the ledger (`csdn add`, `csdn sync`); `csdn reject` excludes it again.
    """
    from csdn.curation.drift import Reference, drift_of
    from csdn.curation.drift_page import lines, write_page

    params, chosen = load_params(), find_drop(read_ledger(), drop)
    embedder = embedder_for(model_folder(model))
    reference = Reference(DATA, shards_at(params, DATA), embedder, {chosen.id})
    with progress("drift", "compare", "cameras", images=0) as report:
        found = drift_of(chosen, reference, params.ingest.grey16_range, report)
    if html:
        write_page(found, html)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
    else:
        print(*lines(found), sep="\n")
        if html:
            print(f"page: {html} (one file, opens offline)")


def check_labels(
    drop: DropId,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Write a table to edit and to give to `csdn relabel`.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    top: Annotated[int, typer.Option(help="How many findings of each kind to show.", min=1)] = 20,
    model: Model = None,
) -> None:
    """Rank the images and people of a drop whose labels the model and the other images contradict."""
    from csdn.curation.label_check import check_labels, trained_people
    from csdn.curation.label_page import lines, write_page, write_table

    params, ledger = load_params(), read_ledger()
    chosen = find_drop(ledger, drop)
    others = [one for one in ledger if one.status == Status.ACCEPTED and one.id != chosen.id]
    folder = model_folder(model)
    trained, embedder = trained_people(folder), embedder_for(folder)
    with progress("labels", "embed", "images") as report:
        check = check_labels(
            chosen, others, embedder, trained, params, read_aliases(params.data.aliases), report
        )
    print(*lines(check, top), sep="\n")
    if table:
        write_table(check, table, top)
        print(f"table: {table}; edit its column `person`, then: csdn relabel {table}")
    if html:
        write_page(check, html, top)
        print(f"page: {html} (one file, opens offline)")


def relabel(
    file: Annotated[Path, typer.Argument(help="A table of `csdn check-labels --csv`, edited.")],
) -> None:
    """Correct the labels of a drop: the ledger gets it anew with the labels of the table."""
    from csdn.curation.relabel import relabel

    old, new, count = relabel(file)
    print(
        escape_control_chars(
            f"labels corrected: {count}; drop {new.id[:SHORT]} replaces {old.id[:SHORT]} ({new.address}). "
            "Next: dvc repro"
        )
    )


def suggest(
    drop: Annotated[
        str, typer.Argument(metavar="DROP", help="A drop of the ledger, a folder, or an s3:// prefix.")
    ],
    out: Annotated[Path, typer.Option(help="The manifest to write, for you to correct.")] = Path(
        "labels.csv"
    ),
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="Its people are the known ones; those of the project's data, if not given."),
    ] = None,
    precision: Annotated[float, typer.Option(help="Wanted share of right pairs and names.")] = 0.95,
    modality: Annotated[
        str, typer.Option(help="Of images whose folder does not say it: visible or infrared.")
    ] = "visible",
    model: Annotated[
        Path | None, typer.Option(help="The model's folder; that of the stage evaluate, if not given.")
    ] = None,
) -> None:
    """Suggest people for the images of a drop that have none. Nothing is trained on them until confirmed."""
    from csdn.cli.search import model_folder
    from csdn.curation.suggestions import in_words, suggest, unlabelled_features, write_manifest, write_page
    from csdn.evaluation.open_set import read_thresholds
    from csdn.search.embedder import Embedder

    if not 0.5 <= precision < 1:
        raise UserError(f"--precision {precision}: it is a share from 0.5 to below 1, such as 0.95")
    if out.exists():
        raise UserError(f"{out}: exists; it may have corrections. Name another file (--out), or delete it")
    params = load_params()
    address, listing = _listed(drop, modality)
    unlabelled = [image for image in listing.images if not image.person]
    if not unlabelled:
        raise UserError(f"{drop}: every image has a person already ({len(listing.images)} images)")
    stamp = read_thresholds(EVALUATION / "thresholds.json")
    folder = model_folder(model, stamp.model)
    embedder = Embedder.open(folder, stamp.flip_tta, params.scaling.device, params.scaling.threads)
    known, test = _people(embedder, gallery, folder)
    with progress("suggest", "embed", "images") as report:
        images, features, digest, refused = unlabelled_features(
            unlabelled, embedder, params.ingest.grey16_range, report
        )
    if bad := refused_in_words([*listing.refused, *refused]):
        typer.echo(escape_control_chars(f"left out: {bad}"), err=True)
    if not images:
        raise UserError(f"{drop}: no good image without a person")
    found = suggest(images, features, digest, known, test, precision)
    write_manifest(out, address, found, [image for image in listing.images if image.person])
    lines = in_words(found)
    if html:
        write_page(html, found, drop, str(out))
        lines.append(f"page: {html} (one file, opens offline)")
    lines.append(f"manifest: {out}. Correct it, write yes into `confirmed`, then:")
    lines.append(f"  csdn accept {drop} --labels {out} --reason '...'")
    print(*map(escape_control_chars, lines), sep="\n")


def _listed(drop: str, modality: str) -> tuple[str, ImageListing]:
    """The address below which the images are, and the images."""
    from csdn.ingest.ledger import find_drop, read_ledger, whole_address
    from csdn.ingest.sources.cameras import split_manifest
    from csdn.search.images import images_of_drops, list_images

    if "://" in drop or Path(drop).exists():
        return split_manifest(whole_address(drop))[0], list_images(drop, modality)
    found = find_drop(read_ledger(), drop)
    return split_manifest(found.address)[0], images_of_drops([found])


def _people(embedder: Embedder, gallery: str | None, folder: Path) -> tuple[KnownPeople, TestImages]:
    from csdn.curation.known_people import known_of_gallery, known_of_project, read_test_images
    from csdn.data.catalog import load_dataset
    from csdn.data.shards import shards_at
    from csdn.search.gallery import Gallery

    dataset = load_dataset()
    test = read_test_images(dataset, EVALUATION, embedder.model_hash)
    if gallery:
        opened = Gallery.open(gallery)
        opened.check_model(embedder.model_hash, folder)
        return known_of_gallery(opened), test
    with progress("suggest", "known", "images") as report:
        shards = shards_at(load_params(), Path("data"))
        return known_of_project(dataset, shards, embedder, test, report), test
