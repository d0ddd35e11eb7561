"""Removing the old files of a forgotten person from every place, by what data/forgotten.json records.

Each function removes what is there from one kind of place, and may be called again. What lies outside the
workspace, where other clones may need it (an object store, a DVC remote, a cache elsewhere), is removed only
if the caller says `shared`; otherwise it is counted.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from csdn.data.catalog import INDEX_SCHEMA, SAMPLES_SCHEMA, read_table
from csdn.data.checkpoint_store import clone_name
from csdn.data.storage import Store
from csdn.ingest.forgotten import Forgotten, newest
from csdn.params import Params
from csdn.privacy.objects import Objects, locks_of, outputs_of
from csdn.privacy.rewrite import (
    IMAGE,
    INGEST,
    THRESHOLDS,
    MovedShard,
    Removal,
    images_of,
    rewrite_outputs,
    scrub_file,
    shows_images,
)
from csdn.privacy.survey import SHARDS, OutputSet, indexes, output_sets, outputs_in, shard_path
from csdn.retraining import git
from csdn.retraining.handover import checkpoint_folders
from csdn.retraining.lock import RUNS
from csdn.retraining.versions import present_lock
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write
from csdn.search.gallery import MANIFEST, Gallery

Shows = Callable[[bytes, str], set[str]]  # what of the person is in a file's bytes; its name

# Below .state: nothing in it is of a person. The rest is work that can be done again.
KEPT_STATE = ("clone", "times.json", ".times.json.lock", "forget", "seen-drops.json")
_REPORT = re.compile("[0-9a-f]{16}/index[.]html")  # a copy in report.store (csdn.report.page)
_CHECKPOINTS = re.compile("[0-9a-f]{16}")  # a folder of a clone or a run in scaling.checkpoint_dir


# The workspace.


def replace_outputs(
    root: Path, work: Path, params: Params, forgotten: Forgotten, removal: Removal, objects: Objects
) -> int:
    """Replace the outputs that show the person in the working tree; returns how many files changed.

    The files that say what is left to do, the people of models and of tables, come last: a call that was
    killed is done again by them.
    """
    here = outputs_in(root)
    old = {name for name in _shards_named(here) if name in forgotten.shards}
    moved = {name: _moved(root, params, name, forgotten, objects) for name in old}
    changed = rewrite_outputs(here.files, work / "workspace", removal, moved)
    for name in sorted(changed, key=_turn):
        _replace(root / name, changed[name])
    _rewrite(root / INGEST, lambda data: scrub_file(INGEST, data.decode(), removal).encode())
    _rewrite(root / "dvc.lock", lambda data: present_lock(data, forgotten))
    return len(changed)


def _turn(name: str) -> int:
    """When an output is replaced, among others."""
    if shows_images(name):
        return 0
    later = (THRESHOLDS, ".safetensors", ".parquet", "config.json", "data/people.parquet")
    return 1 + max((n for n, ending in enumerate(later) if name.endswith(ending)), default=0)


def _replace(path: Path, new: Path | None) -> None:
    if new is None:
        path.unlink()
        return
    with atomic_write(path) as temporary:
        shutil.copyfile(new, temporary)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's content, if there is the file."""
    if path.exists() and (new := change(old := path.read_bytes())) != old:
        with atomic_write(path) as temporary:
            temporary.write_bytes(new)


def _shards_named(one: OutputSet) -> set[str]:
    tables = [read_table(path, INDEX_SCHEMA, ["shard"]) for _, path in indexes(one)]
    if path := one.files.get("data/samples.parquet"):
        tables.append(read_table(path, SAMPLES_SCHEMA, ["shard"]))
    return {name for table in tables for name in table["shard"].unique().to_pylist()}


def _moved(root: Path, params: Params, old: str, forgotten: Forgotten, objects: Objects) -> MovedShard:
    """What has replaced a shard; in a clone that has not got it yet, it is fetched. Raises UserError."""
    name = newest(forgotten.shards, old)
    if not name:
        return MovedShard("")
    path = root / SHARDS / name
    if not path.exists():
        kept = {} if params.ingest.store else _kept_shards(root, objects, forgotten)
        path = shard_path(root, params.ingest.store, name, kept.get(name), objects)
        if path is None:
            raise UserError(
                f"{SHARDS}/{name}: neither here nor in a store; `dvc pull` where it is, then again"
            )
        if not params.ingest.store:
            with atomic_write(root / SHARDS / name) as temporary:
                shutil.copyfile(path, temporary)
    offsets = {one.key: one.offset for one in images_of(path, name)}
    return MovedShard(name, path.stat().st_size, offsets)


def _kept_shards(root: Path, objects: Objects, forgotten: Forgotten) -> dict[str, str]:
    sets, _ = output_sets(root, objects, forgotten)
    return {name: md5 for one in sets for name, md5 in one.shards.items()}


def remove_old_shards(folder: Path, forgotten: Forgotten) -> int:
    """Remove replaced shards from a folder: that of the workspace, or a cache of an object store's."""
    found = [folder / name for name in forgotten.shards if (folder / name).exists()]
    for path in found:
        path.unlink()
    return len(found)


def shard_cache(params: Params) -> Path:
    """The folder in which this machine keeps shards of an object store (csdn.data.shard_cache)."""
    if params.scaling.cache.folder:
        return Path(params.scaling.cache.folder).expanduser().absolute()
    return user_cache() / "shards"


def user_cache() -> Path:
    """The folder in which this project keeps what it fetched for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csdn"


def remove_work(root: Path, shows: Shows) -> list[str]:
    """Remove what can be made again: unfinished stages, features of galleries, runs, the champion's folder.

    Branches of runs stay, and their outputs are made again as those of versions are. Of the files that a
    promotion moved aside (.runs/replaced) those are removed that show the person. Returns the names of what
    was there.
    """
    removed = []
    for path in sorted((root / ".state").glob("*")):
        if path.name in KEPT_STATE:
            continue
        _remove(path)
        removed.append(f".state/{path.name}")
    for path in sorted((root / RUNS).glob("*")):
        if path.name == "replaced":
            for file in (file for file in path.rglob("*") if file.is_file()):
                if shows(file.read_bytes(), file.name):
                    file.unlink()
        elif path.is_dir():
            _remove(path)
            removed.append(f"{RUNS}/{path.name}")
    git.git(root, "worktree", "prune")
    if (root / "champion").exists():
        _remove(root / "champion")
        removed.append("champion")
    return removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_checkpoints(root: Path, params: Params, shared: bool) -> tuple[int, list[str]]:
    """Remove the checkpoints of this clone and of this project's runs from `scaling.checkpoint_dir`, and, if
    `shared`, those of others, of which nobody knows on whom they were trained.

    Returns how many folders were removed, and a line for those that are kept.
    """
    if not (address := params.scaling.checkpoint_dir):
        return 0, []
    own = {clone_name(root / ".state"), *checkpoint_folders(root)}
    store = Store(address) if "://" in address else None
    entries = store.objects() if store else Path(address).glob("*")
    names = [entry.name for entry in entries]
    folders = {folder for name in names if _CHECKPOINTS.fullmatch(folder := name.partition("/")[0])}
    gone = folders if shared else folders & own
    for name in (name for name in names if name.partition("/")[0] in gone):
        if store:
            store.remove(name)
        else:
            _remove(Path(address, name))
    others = len(folders - gone)
    kept = [f"{address}: checkpoints of {others} clones or runs (--shared removes them)"] if others else []
    return len(gone), kept


# DVC's objects, and stores.


def live_objects(root: Path, objects: Objects, forgotten: Forgotten) -> set[str]:
    """The hashes of all objects that the dvc.lock of any commit names now."""
    live = set[str]()
    for name, content in locks_of(root):
        for values in outputs_of(present_lock(content, forgotten), name).values():
            live.add(values["md5"])
            if values["md5"].endswith(".dir"):
                live |= set((objects.files_of(values["md5"]) or {}).values())
    return live


def remove_objects(root: Path, objects: Objects, forgotten: Forgotten, shared: bool) -> tuple[int, list[str]]:
    """Remove replaced objects from the cache and, if `shared`, from remotes.

    Returns how many were removed, and a line for each place that keeps some.
    """
    live = live_objects(root, objects, forgotten)
    gone = [md5 for md5 in forgotten.objects if md5 not in live]
    removed, kept = 0, list[str]()
    cached = [path for md5 in gone if (path := objects.cached(md5)).exists()]
    if shared or objects.cache.is_relative_to(root.resolve()):
        for path in cached:
            path.unlink()
        removed += len(cached)
    elif cached:
        kept.append(f"{objects.cache}: {len(cached)} objects of DVC (--shared removes them)")
    for remote in objects.remotes:
        there = [md5 for md5 in gone if remote.has(md5)]
        if shared:
            for md5 in there:
                remote.remove(md5)
            removed += len(there)
        elif there:
            kept.append(
                f"the DVC remote {remote.name} ({remote.address}): {len(there)} objects "
                "(--shared removes them)"
            )
    return removed, kept


def unnamed_objects(root: Path, objects: Objects, forgotten: Forgotten, shows: Shows) -> set[str]:
    """The objects that show the person, and that no dvc.lock names, such as those of a `dvc repro` before the
    last one: data/forgotten.json names them, so that `remove_objects` removes them everywhere.

    In a remote there are objects of other projects, too, who may know somebody of the same name: what only a
    remote has counts only if it has an image of the person.
    """
    known = live_objects(root, objects, forgotten) | set(forgotten.objects)
    found = {
        md5
        for md5, path in _cached(root, objects).items()
        if md5 not in known and shows(path.read_bytes(), md5)
    }
    copy = objects.temporary / "copy"
    for remote in objects.remotes:
        for md5 in set(remote.all()) - known - found:
            remote.get(md5, copy)
            if IMAGE in shows(copy.read_bytes(), md5):
                found.add(md5)
    return found


def remove_unnamed(root: Path, objects: Objects, forgotten: Forgotten, shows: Shows) -> int:
    """Remove from the cache what `unnamed_objects` finds there, and the other unnamed files of the same
    folders (a model's weights, beside the list of its people). Returns their number.
    """
    live = live_objects(root, objects, forgotten)
    unnamed = {md5: path for md5, path in _cached(root, objects).items() if md5 not in live}
    showing = {md5 for md5, path in unnamed.items() if shows(path.read_bytes(), md5)}
    others = set[str]()
    for md5 in (md5 for md5 in unnamed if md5.endswith(".dir")):
        inside = set((objects.files_of(md5) or {}).values())
        if inside & showing:
            others |= {md5, *inside} & set(unnamed)
    for md5 in (*(others - showing), *showing):  # the others first: once these are gone, nobody finds them
        unnamed[md5].unlink()
    return len(others | showing)


def _cached(root: Path, objects: Objects) -> dict[str, Path]:
    """The objects in the cache. A cache outside the project's folder counts as empty: what is in it may be
    another project's, or another clone's.
    """
    if not objects.cache.is_relative_to(root.resolve()):
        return {}
    return {path.parent.name + path.name: path for path in objects.cache.glob("*/*")}


def remove_from_store(params: Params, forgotten: Forgotten, shared: bool) -> tuple[int, list[str]]:
    """The same for replaced shards in `ingest.store`."""
    if not params.ingest.store:
        return 0, []
    store = Store(params.ingest.store)
    there = [found.name for found in store.objects() if found.name in forgotten.shards]
    return _remove_from(store, there, "shards", shared)


def remove_reports(params: Params, removal: Removal, shared: bool) -> tuple[int, list[str]]:
    """The same for copies of reports in `report.store` whose page names the person: each is a folder of
    that page. It goes last, as it tells that the folder is of the person.
    """
    if not params.report.store:
        return 0, []
    store = Store(params.report.store)
    listed = list(store.objects())
    pages = {
        found.name
        for found in listed
        if _REPORT.fullmatch(found.name) and removal.names.are_in(store.read(found).decode(errors="replace"))
    }
    folders = {name.partition("/")[0] for name in pages}
    there = [found.name for found in listed if found.name.partition("/")[0] in folders]
    there.sort(key=lambda name: name in pages)
    return _remove_from(store, there, "files of reports", shared)


def _remove_from(store: Store, names: list[str], what: str, shared: bool) -> tuple[int, list[str]]:
    if not shared:
        return 0, [f"{store.address}: {len(names)} {what} (--shared removes them)"] if names else []
    for name in names:
        store.remove(name)
    return len(names), []


# Galleries.


def galleries_in(root: Path) -> Iterator[str]:
    """The galleries in the workspace, which DVC and Git do not keep."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", ".dvc", ".venv", ".state", RUNS)]
        if MANIFEST in files:
            yield folder


def have_person(galleries: Iterable[str], removal: Removal) -> bool:
    """Whether any of the galleries has the person. Raises UserError where one cannot be opened."""
    return any(_people(Gallery.open(address), removal) for address in galleries)


def _people(gallery: Gallery, removal: Removal) -> list[str]:
    """The names in a gallery that are the person's."""
    return sorted(filter(removal.is_label, gallery.column("person").unique().to_pylist()))


def clean_galleries(addresses: Iterable[str], forgotten: Forgotten, removal: Removal) -> list[str]:
    """Remove the person from galleries; a line for each, also for one that cannot be opened."""
    lines = []
    for address in dict.fromkeys(addresses):
        try:
            gallery = Gallery.open(address)
            count = gallery.remove(_people(gallery, removal), removal.images)
            if (model := newest(forgotten.weights, gallery.manifest.model)) is not None:
                gallery.set_model(model)
        except UserError as error:
            lines.append(f"not reached: {error}")
            continue
        lines.append(f"{address}: {count} images removed")
    return lines
