"""What `csdn check-labels` writes: a table for editing, a page with pictures, lines for a terminal.

The table has the columns of a manifest, with the suggestion beside them, and `csdn relabel` takes it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from csdn.curation.label_check import Finding, LabelCheck
from csdn.data.images import BadImage
from csdn.data.outputs import refused_in_words, write_csv
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write
from csdn.runtime.sanitize import escape_control_chars
from csdn.search.results import picture_uri

SHOTS = 4  # pictures of a person beside an image
EXAMPLES = 6  # of a person, or of a half of a label, beside another

# As in a manifest; then what the features say; `drop` tells `csdn relabel` which drop it is.
COLUMNS = ("path", "person", "modality", "camera", "captured_at")
FOUND = ("suggestion", "score", "own_similarity", "other_similarity", "judge", "same_as", "half", "drop")


def write_table(check: LabelCheck, path: Path, top: int) -> None:
    """A row for each judged image of the drop, the most contradicted first.

    `suggestion` is the person whom the image resembles most, if more than its label. Of the first `top` pairs
    of people, `same_as` names the other; of the first `top` labels that may be two people, `half` is 1 or 2.
    """
    same = dict[str, str]()
    for pair in check.pairs[:top]:
        same.setdefault(pair.person, pair.other)
        same.setdefault(pair.other, pair.person)
    halved = {split.person for split in check.splits[:top]}
    rows = [_row(check, found, same, halved) for found in check.images]
    with atomic_write(path) as temporary:
        write_csv(temporary, rows, (*COLUMNS, *FOUND), digits=4)


def _row(check: LabelCheck, found: Finding, same: dict[str, str], halved: set[str]) -> dict[str, Any]:
    record = check.rows[found.row].record
    given = {name: getattr(record, name) or "" for name in COLUMNS}
    contradicted = found.other_similarity > found.own_similarity
    return given | {
        "suggestion": found.other if contradicted else "",
        "score": found.score,
        "own_similarity": found.own_similarity,
        "other_similarity": found.other_similarity,
        "judge": found.judge,
        "same_as": same.get(found.person, ""),
        "half": int(check.part[found.row]) + 1 if found.person in halved else "",
        "drop": check.drop.id,
    }


def lines(check: LabelCheck, top: int) -> list[str]:
    """Lines for a terminal: what was judged, then the first findings of each kind."""
    said = [_judged(check)]
    if check.refused:
        said.append(f"not judged: {refused_in_words(check.refused)}")
    said.append("images that resemble another person more than their label:")
    for one in check.contradicted(top):
        path = check.rows[one.row].record.path
        said.append(f"  {one.score:6.2f}  {path}: {one.person}, or {one.other}?")
    said.append("two labels that may be one person:")
    said += [f"  {one.score:6.2f}  {one.person} and {one.other}" for one in check.pairs[:top]]
    said.append("labels that may be two people:")
    said += [f"  {one.score:6.2f}  {one.person}" for one in check.splits[:top]]
    return [escape_control_chars(line) for line in said]


def _judged(check: LabelCheck) -> str:
    people = {one.person for one in check.rows[: check.size]}
    alone = check.size - len(check.images)
    by_clip = len(check.learned)
    return (
        f"{check.drop}: {len(check.images)} images of {len(people)} people judged"
        + (f", {by_clip} of them, whom the model was trained on, by CLIP without training" if by_clip else "")
        + (f"; {alone} images are the only one of their label" if alone else "")
    )


# The page.


def write_page(check: LabelCheck, path: Path, top: int) -> None:
    """One HTML file with all pictures in it: the first `top` findings of each kind."""
    environment = Environment(
        loader=PackageLoader("csdn.curation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("labels.html.j2").render(
        about=_judged(check),
        images=[_image(check, found) for found in check.contradicted(top)],
        pairs=[
            (found, _people(check, (found.person, None), (found.other, None))) for found in check.pairs[:top]
        ],
        splits=[
            (found, _people(check, (found.person, 0), (found.person, 1))) for found in check.splits[:top]
        ],
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _image(check: LabelCheck, found: Finding) -> dict[str, Any]:
    return {
        "found": found,
        "image": _shot(check, found.row),
        "own": [_shot(check, row) for row in check.similar(found.row, found.person, SHOTS)],
        "other": [_shot(check, row) for row in check.similar(found.row, found.other, SHOTS)],
    }


def _people(check: LabelCheck, *sides: tuple[str, int | None]) -> Sequence[list[dict[str, Any]]]:
    return [[_shot(check, row) for row in check.examples(person, EXAMPLES, part)] for person, part in sides]


def _shot(check: LabelCheck, row: int) -> dict[str, Any]:
    """A picture with its facts; no picture where the image cannot be read any more."""
    one = check.rows[row]
    uri: Markup | None = None
    with suppress(UserError, BadImage, OSError):
        uri = picture_uri(one.image.read(), one.record.path)
    return {"uri": uri, "record": one.record, "known": row >= check.size}
