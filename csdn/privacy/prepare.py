"""The second step of `csdn forget`: new shards, tables and weights, beside those in use, which stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csdn.data.shards import has_bytes_of
from csdn.ingest.pack import put_shard
from csdn.privacy import places
from csdn.privacy.objects import Objects, Values, folder_size
from csdn.privacy.plan import Plan
from csdn.privacy.rewrite import MovedShard, rewrite_outputs, rewrite_shard
from csdn.privacy.survey import SHARDS, OutputSet, shard_path
from csdn.privacy.verify import Search
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256, rename_flushed

Note = Callable[[str], None]  # says a line to people


@dataclass
class Prepared:
    """What replaces what, for data/forgotten.json, and the new shards."""

    shards: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Values] = field(default_factory=dict)


def prepare(found: Plan, note: Note) -> Prepared:
    """Write and keep the new shards and objects of all output sets; nothing that is in use changes."""
    made = Prepared()
    shows = Search(found.removal, sure=True).in_bytes
    unnamed = places.unnamed_objects(found.root, found.objects, found.forgotten, shows)
    moved = _new_shards(found, made, note)
    for number, one in enumerate(found.survey.sets):
        out = found.work / f"outputs-{number}"
        note(f"makes again without the person: {one.name}")
        changed = rewrite_outputs(one.files, out, found.removal, moved)
        _note_weights(one.files, changed, made)
        if one.outs:
            _replace_objects(one, changed, found.objects, made)
    made.objects |= {md5: {} for md5 in unnamed}
    return made


def _new_shards(found: Plan, made: Prepared, note: Note) -> dict[str, MovedShard]:
    """Rewrite each shard that has an image of the person; the new ones are in force nowhere yet."""
    store, moved = found.params.ingest.store, {}
    kept = {name: md5 for one in found.survey.sets for name, md5 in one.shards.items()}
    out = found.work / "shards"
    out.mkdir(parents=True, exist_ok=True)
    for name in sorted(found.survey.shards):
        path = shard_path(found.root, store, name, kept.get(name), found.objects)
        if path is None:
            found.survey.missing.append(f"{SHARDS}/{name}: no undamaged copy was found; cannot be rewritten")
            continue
        new = rewrite_shard(path, name, out, found.removal)
        if new.name == name:  # nothing of the person is in it
            continue
        made.shards[name], moved[name] = new.name, new
        note(f"{name}: {len(new.offsets)} images stay, in {new.name or 'no shard'}")
        if new.name:
            _keep_shard(found, out / new.name, new)
        if name in kept:
            md5 = found.objects.add(out / new.name, kept[name]) if new.name else ""
            made.objects[kept[name]] = {"md5": md5} if md5 else {}
    return moved


def _keep_shard(found: Plan, path: Path, new: MovedShard) -> None:
    """Put a new shard beside the old one: into the store, or the folder of shards."""
    if not has_bytes_of(new.name, path):
        raise UserError(f"{path}: its hash is not that in its name: the disk is faulty; nothing was removed")
    if found.params.ingest.store:
        put_shard(found.params.ingest.store, new.name, path, new.size)
    elif not (target := found.root / SHARDS / new.name).exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{new.name}.partial")
        shutil.copyfile(path, temporary)
        rename_flushed(temporary, target)


def _note_weights(files: Mapping[str, Path], changed: Mapping[str, Path | None], made: Prepared) -> None:
    for name, new in changed.items():
        if new and name.startswith("models/") and name.endswith(".safetensors"):
            made.weights[file_sha256(files[name])] = file_sha256(new)


def _replace_objects(
    one: OutputSet, changed: Mapping[str, Path | None], objects: Objects, made: Prepared
) -> None:
    """Keep the changed files of a dvc.lock as objects, and note what they replace."""
    for name, new in changed.items():
        old = one.hashes[name]
        if new is None:
            made.objects[old] = {}
        else:
            made.objects[old] = {"md5": objects.add(new, old), "size": new.stat().st_size}
    for path, values in one.outs.items():
        old = values["md5"]
        if not old.endswith(".dir"):
            continue
        before = objects.files_of(old)
        if before is None:
            continue
        after = dict[str, str]()
        for name, md5 in before.items():
            replaced = (path == SHARDS and name in made.shards) or f"{path}/{name}" in changed
            name = made.shards.get(name, name) if path == SHARDS else name
            if present := made.objects[md5].get("md5") if replaced else md5:
                after[name] = present
        if after != before:
            size = folder_size(objects, after)
            made.objects[old] = (
                {"md5": objects.add_folder(after, old), "size": size, "nfiles": len(after)} if after else {}
            )
