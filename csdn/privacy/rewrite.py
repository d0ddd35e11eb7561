"""The outputs of the pipeline without one person: shards, tables, models, evaluation, report.

`rewrite_shard` makes a shard without the person's images; `rewrite_outputs` makes the files of the workspace,
or of a version, that refer to it. Files are read from any place and written to a folder of the caller:
nothing is replaced here. The same files give the same bytes.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csdn.data.catalog import (
    INDEX_SCHEMA,
    PEOPLE_SCHEMA,
    QUARANTINE_SCHEMA,
    REFUSED_SCHEMA,
    SAMPLES_SCHEMA,
    read_facts,
    read_table,
    write_table,
)
from csdn.data.labels import canonical_label, label_fault
from csdn.data.shards import HASH_DIGITS, ShardWriter
from csdn.ingest.merge import tombstone
from csdn.model.network import row_std
from csdn.privacy.names import Names
from csdn.runtime.documents import expected_in, parse_json, read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json, file_sha256, write_json
from csdn.search.model_card import CARD

# Of the folder evaluation: what shows single images of test people. `dvc repro evaluate` makes it again.
OF_IMAGES = ("queries.parquet", "features.safetensors", "text_maps.csv", "text_maps.safetensors")
THRESHOLDS = "evaluation/thresholds.json"
INGEST = "metrics/ingest.json"
_ROW_OF_DROP = re.compile(r"^\| [0-9a-f]{64} \|.*$", re.MULTILINE)  # in the model card

NAME, IMAGE = "the name", "an image"  # what of a person is found in a file


@dataclass(frozen=True)
class Removal:
    """Whom to remove: canonical labels, SHA-256 of the images, and the name that stands in their place."""

    labels: frozenset[str]
    images: frozenset[str]
    name: str

    def is_label(self, label: str | None) -> bool:
        """Whether a label, as given, means the person."""
        return bool(label) and not label_fault(label) and canonical_label(label) in self.labels

    @cached_property
    def names(self) -> Names:
        """The labels, to be found in texts."""
        return Names(self.labels)

    def labels_in(self, column: pa.ChunkedArray) -> pa.Array:
        """Those of a column's labels that mean the person."""
        return pa.array([one for one in column.unique().to_pylist() if self.is_label(one)], pa.string())

    def is_path(self, path: str) -> bool:
        """Whether the folder of people in <modality>/<camera>/<person>/<name> is called like the person.

        A camera or a file may have the same name, and the images in it are others'.
        """
        parts = path.split("/")
        return len(parts) >= 4 and self.is_label(parts[2])


@dataclass(frozen=True)
class MovedShard:
    """What has replaced a shard: its name ("": no image is left), its bytes, and where its images begin."""

    name: str
    size: int = 0
    offsets: Mapping[str, int] = field(default_factory=dict)


# Shards.


def rewrite_shard(path: Path, name: str, out: Path, removal: Removal) -> MovedShard:
    """Write the shard at `path`, called `name`, without the person's images into the folder `out`.

    Raises UserError where it cannot be read to its end.
    """
    offsets: dict[str, int] = {}
    temporary = out / f".{name}.partial"
    with temporary.open("wb") as file, ShardWriter(file) as writer:
        for one in images_of(path, name):
            if one.key not in removal.images and not removal.is_label(one.facts["person"]):
                offsets[one.key] = writer.add(one.key, one.extension, one.data, one.facts)
    if not offsets:
        temporary.unlink()
        return MovedShard("")
    new = f"{Path(name).stem.rpartition('-')[0]}-{writer.hexdigest()[:HASH_DIGITS]}.tar"
    temporary.replace(out / new)
    return MovedShard(new, writer.size, offsets)


class ShardImage(NamedTuple):
    """An image in a shard: its bytes begin at `offset`; facts: of the JSON file beside it."""

    key: str
    extension: str
    offset: int
    data: bytes
    facts: dict[str, Any]


def images_of(path: Path, name: str) -> Iterator[ShardImage]:
    """The images of the shard at `path`, called `name`; raises UserError where it is damaged."""
    try:
        with tarfile.open(path, "r:") as tar:
            image, key, extension, offset = b"", "", "", 0
            for member in tar:
                if (file := tar.extractfile(member)) is None:
                    raise tarfile.TarError(f"{member.name} is no file")
                data = file.read()
                stem, _, ending = member.name.partition(".")
                if ending != "json":
                    key, extension, offset, image = stem, ending, member.offset_data, data
                    continue
                if stem != key:
                    raise tarfile.TarError(f"{member.name} does not follow its image")
                yield ShardImage(key, extension, offset, image, json.loads(data))
    except (tarfile.TarError, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: not readable as a shard: {error}") from None


# Everything else.


def rewrite_outputs(
    files: Mapping[str, Path], out: Path, removal: Removal, moved: Mapping[str, MovedShard]
) -> dict[str, Path | None]:
    """What changes in a set of outputs without the person: path in the project -> new file below `out`, or
    None where nothing replaces the file.

    files: path in the project -> where the file lies. Shards are left to the caller. Raises UserError where a
    table cannot be read.
    """
    changed: dict[str, Path | None] = {}
    row = row_of(files, removal)
    for name, path in files.items():
        if new := _table(name, path, out, removal, moved, row):
            changed[name] = new
    for stage, weights in (("prompts", "prompts.safetensors"), ("embedding", "model.safetensors")):
        config = f"models/{stage}/config.json"
        if config in files and f"models/{stage}/{weights}" in files:
            changed |= _model(files, config, f"models/{stage}/{weights}", out, removal)
    model = "models/embedding/model.safetensors"
    if THRESHOLDS in files and (weights_file := changed.get(model)):
        thresholds = read_json(files[THRESHOLDS])
        write_json(target := _target(out, THRESHOLDS), thresholds | {"model": file_sha256(weights_file)})
        changed[THRESHOLDS] = target
    if row is not None or changed:
        changed |= dict.fromkeys(name for name in files if shows_images(name))
    return changed


def row_of(files: Mapping[str, Path], removal: Removal) -> int | None:
    """The person's row in people.parquet; None where the files have none."""
    if (path := files.get("data/people.parquet")) is None:
        return None
    people = read_table(path, PEOPLE_SCHEMA, ["row", "person"])
    rows = people["row"].filter(pc.is_in(people["person"], removal.labels_in(people["person"])))
    return rows[0].as_py() if len(rows) else None


def shows_images(name: str) -> bool:
    """Whether an output shows single images, so that it is removed, and made again by its stage."""
    folder, _, rest = name.partition("/")
    return folder == "report" or (folder == "evaluation" and rest in OF_IMAGES)


def _target(out: Path, name: str) -> Path:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _table(
    name: str,
    path: Path,
    out: Path,
    removal: Removal,
    moved: Mapping[str, MovedShard],
    row: int | None,
) -> Path | None:
    """The table of this name without the person; None where it does not change, or is no table."""
    facts = None
    if name == "data/people.parquet" and row is not None:
        old = read_table(path, PEOPLE_SCHEMA)
        new = pa.concat_tables([old.filter(pc.not_equal(old["row"], row)), tombstone(row, removal.name)])
        new = new.sort_by("row")
    elif name == "data/samples.parquet":
        old = read_table(path, SAMPLES_SCHEMA)
        gone = pc.is_in(old["key"], pa.array(sorted(removal.images), pa.string()))
        if row is not None:
            gone = pc.or_(gone, pc.equal(old["person_row"], row))
        new = _moved(old.filter(pc.invert(gone)), moved)
    elif name == "data/quarantine.parquet" or name.endswith(".quarantine.parquet"):
        old = read_table(path, QUARANTINE_SCHEMA if name == "data/quarantine.parquet" else REFUSED_SCHEMA)
        facts, new = read_facts(path), _refused(old, removal)
    elif name.startswith("data/index/"):
        old, facts = read_table(path, INDEX_SCHEMA), read_facts(path)
        new = _moved(old.filter(pc.invert(of_person(old, removal))), moved)
        facts["shards"] = _shards(facts["shards"], moved)
    else:
        return None
    if new.equals(old):
        return None
    write_table(_target(out, name), new, facts)
    return out / name


def of_person(index: pa.Table, removal: Removal) -> pa.ChunkedArray:
    """Which rows of a drop's index are of the person, by label or by image."""
    return pc.or_(
        pc.is_in(index["key"], pa.array(sorted(removal.images), pa.string())),
        pc.is_in(index["person"], removal.labels_in(index["person"])),
    )


def _refused(table: pa.Table, removal: Removal) -> pa.Table:
    gone = [
        removal.is_label(person) or sha256 in removal.images or removal.is_path(path)
        for person, sha256, path in zip(
            *(table[name].to_pylist() for name in ("person", "sha256", "path")), strict=True
        )
    ]
    return table.filter(pa.array(np.logical_not(np.array(gone, bool))))


def _moved(table: pa.Table, moved: Mapping[str, MovedShard]) -> pa.Table:
    """The rows with their images' places in the new shards; a row whose image is gone goes too."""
    shards, keys, offsets = (table[name].to_pylist() for name in ("shard", "key", "offset"))
    kept = np.ones(len(shards), bool)
    for n, (shard, key) in enumerate(zip(shards, keys, strict=True)):
        if (new := moved.get(shard)) is not None:
            kept[n] = key in new.offsets
            shards[n], offsets[n] = new.name, new.offsets.get(key, 0)
    for name, values in (("shard", shards), ("offset", offsets)):
        place = table.schema.get_field_index(name)
        table = table.set_column(
            place, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    return table.filter(pa.array(kept))


def _shards(sizes: Mapping[str, int], moved: Mapping[str, MovedShard]) -> dict[str, int]:
    """The facts of an index: name -> bytes of the drop's shards."""
    kept = {name: size for name, size in sizes.items() if name not in moved}
    return kept | {moved[name].name: moved[name].size for name in sizes if name in moved and moved[name].name}


# Models: the person's rows of tokens, texts and classifiers become zeros, so that nobody else's row moves.


def _model(
    files: Mapping[str, Path], config: str, weights: str, out: Path, removal: Removal
) -> dict[str, Path | None]:
    described = read_json(files[config])
    people = described.get("people") or []
    rows = [n for n, person in enumerate(people) if removal.is_label(person)]
    if not rows:
        return {}
    described["people"] = [removal.name if n in rows else person for n, person in enumerate(people)]
    write_json(_target(out, config), described)
    changed: dict[str, Path | None] = {config: out / config}
    old = files[weights].read_bytes()
    zero_rows(new := bytearray(old), rows, len(people))
    if new != old:
        _target(out, weights).write_bytes(new)
        changed[weights] = out / weights
    return changed


def zero_rows(data: bytearray, rows: Collection[int], people: int) -> None:
    """Overwrite the rows of some identities with zeros in the bytes of a safetensors file, in every tensor
    that has rows of identities.
    """
    size = int.from_bytes(data[:8], "little")
    header, begin = json.loads(data[8 : 8 + size]), 8 + size
    for name, about in header.items():
        if name == "__metadata__" or not (row_std(name) is not None or name == "fused_text"):
            continue
        start, end = about["data_offsets"]
        width = (end - start) // people
        for row in rows:
            first = begin + start + row * width
            data[first : first + width] = bytes(width)


# Texts.


def scrub(text: str, removal: Removal) -> str:
    """A text with the person's name replaced."""
    return removal.names.replaced(text, removal.name)


def scrub_file(name: str, text: str, removal: Removal) -> str:
    """The text of a file in Git without the person's name.

    metrics/ingest.json has names of people in its notes on their labels and in what it says of drops, the
    model card in the addresses of drops. The rest of both is about cameras, which may be called like the
    person; other files of metrics name nobody.
    """
    if name == CARD:
        return _ROW_OF_DROP.sub(lambda row: scrub(row[0], removal), text)
    if name != INGEST:
        return text
    old = parse_json(text, name, "`dvc repro ingest` makes it")
    with expected_in(name, "`dvc repro ingest` makes it"):
        named = {key: _scrubbed(old[key], removal) for key in ("labels", "drops") if key in old}
    new = old | named
    return text if new == old else as_json(new).decode()


def _scrubbed(value: Any, removal: Removal) -> Any:
    """A JSON value with the person's name replaced, but for keys, and for what is about cameras."""
    if isinstance(value, dict):
        return {key: one if key == "cameras" else _scrubbed(one, removal) for key, one in value.items()}
    if isinstance(value, list):
        return [_scrubbed(one, removal) for one in value]
    is_note = isinstance(value, str) and not value.startswith("cameras: ")
    return scrub(value, removal) if is_note else value
