"""Commands that use a trained model: csdn gallery build, add, remove, info, index; and csdn search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from csdn.data.outputs import refused_in_words
from csdn.params import Params, load_params
from csdn.runtime.console import progress
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json as json_bytes
from csdn.runtime.sanitize import escape_control_chars
from csdn.training.champion import CHAMPION, read_champion

if TYPE_CHECKING:
    from csdn.evaluation.open_set import Thresholds
    from csdn.search.embedder import Embedder
    from csdn.search.gallery import Gallery
    from csdn.search.images import Grey16Ranges, ImageListing
    from csdn.search.search import Filters

PARAMS = Path("params.yaml")
THRESHOLDS = (Path("champion/evaluation/thresholds.json"), Path("evaluation/thresholds.json"))

gallery_app = typer.Typer(
    help="The gallery: features of images, in which `csdn search` searches.", no_args_is_help=True
)
GalleryAddress = Annotated[str, typer.Argument(metavar="GALLERY", help="A folder, or s3://bucket/prefix.")]
Images = Annotated[
    list[str] | None, typer.Option(help="A folder, manifest or s3:// prefix of images; may be repeated.")
]
Drops = Annotated[
    list[str] | None, typer.Option(help="A drop of the ledger by address or id, or all; may be repeated.")
]
Model = Annotated[
    Path | None, typer.Option(help="The model's folder; not given: the champion's, else models/embedding.")
]
Modality = Annotated[str, typer.Option(help="Of images whose folder does not say it: visible or infrared.")]


@gallery_app.command()
def build(
    out: Annotated[str, typer.Option(help="The gallery to make: a folder, or s3://bucket/prefix.")],
    images: Images = None,
    drops: Drops = None,
    source: Annotated[
        str | None, typer.Option("--from", help="A gallery, to embed its images again.")
    ] = None,
    model: Model = None,
    modality: Modality = "visible",
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Of the features on disk.")
    ] = "float16",
) -> None:
    """Embed images and keep their features. Run it again to go on after it was stopped."""
    from csdn.search.gallery import Gallery

    listed = _listed(images, drops, modality, source)
    if Gallery(out).exists():
        gallery = Gallery.open(out)
        embedder = _embedder_of(gallery, model)
    else:
        embedder = embedder_for(model_folder(model))
        gallery = Gallery.create(out, embedder.model_hash, embedder.dimension, dtype, embedder.flip_tta)
    if source:
        gallery.copy_uploads(Gallery.open(source))
    _fill(gallery, listed, embedder)


@gallery_app.command()
def add(
    gallery: GalleryAddress,
    images: Images = None,
    drops: Drops = None,
    model: Model = None,
    modality: Modality = "visible",
) -> None:
    """Add the images that the gallery does not have yet."""
    from csdn.search.gallery import Gallery

    opened = Gallery.open(gallery)
    _fill(opened, _listed(images, drops, modality), _embedder_of(opened, model))


@gallery_app.command()
def remove(
    gallery: GalleryAddress,
    person: Annotated[list[str], typer.Option(help="Whose images to remove; may be repeated.")],
) -> None:
    """Remove people: their features and facts are gone from the disk."""
    from csdn.search.gallery import Gallery

    print(f"{gallery}: {Gallery.open(gallery).remove(person)} images removed")


@gallery_app.command()
def index(gallery: GalleryAddress) -> None:
    """Make the index of a large gallery again, and measure its recall."""
    from csdn.search.gallery import Gallery
    from csdn.search.search import EXACT_UP_TO

    opened = Gallery.open(gallery)
    if len(opened) <= EXACT_UP_TO:
        raise UserError(f"{gallery}: up to {EXACT_UP_TO} images are searched exactly, without an index")
    _index(opened)


@gallery_app.command()
def info(gallery: GalleryAddress) -> None:
    """Show what a gallery contains: images, people, cameras, times, model, index."""
    from csdn.search.gallery import Gallery
    from csdn.search.results import described

    print(*map(escape_control_chars, described(Gallery.open(gallery))), sep="\n")


def search(
    gallery: Annotated[str, typer.Option(help="A folder, or s3://bucket/prefix.")],
    query: Annotated[str, typer.Option(help="An image, or a folder of images.")],
    modality: Annotated[str, typer.Option(help="Of the queries: visible or infrared.")] = "infrared",
    among: Annotated[
        str | None,
        typer.Option(help="Images to search: visible, infrared or both; the other modality, if not given."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many people to show.", min=1, max=1000)] = 10,
    camera: Annotated[list[str] | None, typer.Option(help="Of these cameras alone; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option(help="Not before this time, such as 2026-11-01T08:00.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    fpir: Annotated[
        float, typer.Option(help="Wanted share of false alarms for people who are not in the gallery.")
    ] = 0.1,
    exact: Annotated[bool, typer.Option(help="Without the index, in a large gallery too.")] = False,
    rerank: Annotated[
        bool, typer.Option(help="k-reciprocal re-ranking of all queries and images together; no threshold.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    model: Model = None,
) -> None:
    """Search a gallery for the people in images: who is this, and is the person there at all?"""
    from csdn.search.gallery import Gallery
    from csdn.search.images import list_images
    from csdn.search.results import Threshold, answer_queries, table, threshold_for, write_page
    from csdn.search.search import Searcher

    if not 0 < fpir < 1:
        raise UserError(f"--fpir {fpir}: it is a share between 0 and 1, such as 0.1 for 10 %")
    opened = Gallery.open(gallery)
    if not len(opened):
        raise UserError(
            f"{gallery}: the gallery is empty; `csdn gallery add {gallery} --images FOLDER` fills it"
        )
    listed = list_images(query, modality)
    images = [image for image in listed.images if image.modality == modality]
    if listed.images and not images:
        raise UserError(f"{query}: no {modality} image is there; --modality names the other kind")
    folder = model_folder(model, opened.manifest.model)
    embedder = _embedder_of(opened, folder)
    filters, searcher = _filters(modality, among, camera, since, until), Searcher(opened)
    threshold = threshold_for(_thresholds(opened.manifest.model, folder), searcher, modality, filters, fpir)
    if rerank:
        threshold = Threshold(None, fpir, "thresholds are for rankings without re-ranking")
    answers, refused = answer_queries(
        searcher, embedder, images, filters, top, threshold, _grey16(), exact, rerank
    )
    _show_refused([*listed.refused, *refused], len(answers))
    if html:
        write_page(answers, opened, html)
    if as_json:
        print(json_bytes([answer.as_json() for answer in answers]).decode(), end="")
    else:
        print(*table(answers), sep="\n")
        if html:
            print(f"page: {html} (one file, opens offline)")


# What the commands share.


def _params() -> Params | None:
    return load_params(PARAMS) if PARAMS.exists() else None


def model_folder(given: Path | None, wanted: str = "") -> Path:
    """The model's folder: the one with the weights `wanted` (their SHA-256), or else with the champion's, or
    else models/embedding. A note on standard error says if that is not the champion.
    """
    from csdn.search.embedder import MODELS, models_in

    if given is not None:
        return given
    models = models_in(Path())
    if not models:
        raise UserError(f"no model is here ({MODELS[-1]}); `dvc repro` trains one, or name one: --model DIR")
    champion = read_champion().champion if Path(CHAMPION).exists() else None
    of_champion = models.get(champion.embedding) if champion else None
    found = models.get(wanted) or of_champion or [*models.values()][-1]
    if champion and found != of_champion:
        fetch = "`csdn fetch-champion` fetches it, --model names another"
        advice = f"`--model {of_champion}` names that" if of_champion else fetch
        typer.echo(f"note: {found} is not the champion, {champion.version}; {advice}", err=True)
    return found


def embedder_for(folder: Path, flip_tta: bool | None = None) -> Embedder:
    """The model with the project's settings, if there are any; flip_tta replaces theirs."""
    from csdn.search.embedder import Embedder

    if params := _params():
        flip = params.evaluation.flip_tta if flip_tta is None else flip_tta
        return Embedder.open(folder, flip, params.scaling.device, params.scaling.threads)
    return Embedder.open(folder, flip_tta is not False)


def _embedder_of(gallery: Gallery, model: Path | None) -> Embedder:
    """The model that embedded the gallery; raises UserError where the one that is named is another."""
    manifest = gallery.manifest
    folder = model_folder(model, manifest.model)
    embedder = embedder_for(folder, manifest.flip_tta)
    gallery.check_model(embedder.model_hash, folder)
    return embedder


def _listed(
    images: list[str] | None, drops: list[str] | None, modality: str, source: str | None = None
) -> ImageListing:
    """The images that the options name; raises UserError where they name none."""
    from csdn.ingest.ledger import Status, find_drop, read_ledger
    from csdn.search.build import images_of
    from csdn.search.gallery import Gallery
    from csdn.search.images import ImageListing, images_of_drops, list_images

    if not (images or drops or source):
        raise UserError("name images: --images FOLDER, --drops all, or --from GALLERY")
    listings = [list_images(address, modality) for address in images or ()]
    if drops:
        ledger = read_ledger()
        accepted = [drop for drop in ledger if drop.status == Status.ACCEPTED]
        chosen = accepted if drops == ["all"] else [find_drop(ledger, name) for name in drops]
        listings.append(images_of_drops(chosen))
    if source:
        listings.append(ImageListing(images_of(Gallery.open(source))))
    return ImageListing(
        [image for listing in listings for image in listing.images],
        [refused for listing in listings for refused in listing.refused],
    )


def _fill(gallery: Gallery, listed: ImageListing, embedder: Embedder) -> None:
    """Add the images, show what was refused, and make the index where the gallery needs one."""
    from csdn.search.build import add_images, wants_index

    before = len(gallery)
    with progress("gallery", "embed", "images") as report:
        refused = add_images(gallery, listed.images, embedder, _grey16(), report)
    _show_refused([*listed.refused, *refused], len(listed.images) - len(refused))
    print(f"{gallery.address}: {len(gallery)} images, {len(gallery) - before} more than before")
    if wants_index(gallery):
        _index(gallery)


def _index(gallery: Gallery) -> None:
    from csdn.search.build import make_index

    with progress("gallery", "index", "images") as report:
        entry = make_index(gallery, report)
    print(f"index of {entry.images} images: recall@10 {100 * entry.recall:.1f} % against exact search")


def _show_refused(refused: list[tuple[str, str]], good: int) -> None:
    """Say which files were left out, and why; raises UserError where no image is left."""
    said = f"left out: {refused_in_words(refused)}" if refused else ""
    if refused and not good:
        raise UserError(f"no good image; {said}")
    if said:
        typer.echo(escape_control_chars(said), err=True)


def _filters(
    modality: str, among: str | None, camera: list[str] | None, since: str | None, until: str | None
) -> Filters:
    from csdn.data.catalog import MODALITIES
    from csdn.data.labels import label_fault
    from csdn.search.images import seconds
    from csdn.search.search import Filters

    others = {str(one): str(other) for one, other in zip(MODALITIES, reversed(MODALITIES), strict=True)}
    if modality not in others:
        raise UserError(f"--modality {modality}: it is {' or '.join(others)}")
    among = among or others[modality]
    if among not in (*others, "both"):
        raise UserError(f"--among {among}: it is {', '.join(others)} or both")
    for name in camera or ():
        if fault := label_fault(name):
            raise UserError(f"--camera {name}: {fault}")
    times = {"--since": since, "--until": until}
    for option, text in times.items():
        if text is not None and seconds(text) is None:
            raise UserError(f"{option} {text}: no time in ISO 8601, such as 2026-11-01T08:00+01:00")
    return Filters(None if among == "both" else among, camera or (), seconds(since), seconds(until))


def thresholds_places(folder: Path) -> tuple[Path, ...]:
    """Where a model's thresholds may be: beside its folder, as in a fetched champion, or in the project."""
    return (folder.absolute().parent / "evaluation/thresholds.json", *THRESHOLDS)


def _thresholds(model: str, folder: Path) -> Thresholds | None:
    """Thresholds, preferably of the model with this hash; None where there are none."""
    from csdn.evaluation.open_set import read_thresholds

    found = [read_thresholds(path) for path in thresholds_places(folder) if path.exists()]
    return next((one for one in found if one.model == model), found[0] if found else None)


def _grey16() -> Grey16Ranges:
    params = _params()
    return params.ingest.grey16_range if params else {}
