"""A gallery: features of images with what is known of each, of one model, in a folder or an object store.

    gallery.json            what follows is in force: model, numbers of a feature, type, and the list of parts
    <part>.npy              features [n, D] of unit length, float16 or float32, mapped into memory when read
    <part>.parquet          the same images: id, source, person, camera, modality, time, size, SHA-256 (ROWS)
    uploads/<SHA-256>.<ext> images that came without an address (csdn.search.service)
    index-<name>.faiss      an index of large galleries (csdn.search.index)

A part is never changed: its name contains the hash of its bytes. A change writes new parts, then replaces
gallery.json, then removes parts that it no longer names. So a reader always sees a whole gallery, a killed
writer loses at most the images since its last part, and an image that is removed is gone from the disk.
Writers on one machine wait for each other; a gallery in an object store has one writing machine at a time.

The rows are in memory (some 150 bytes an image), the features are not.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csdn.data.labels import canonical_label, label_fault
from csdn.data.storage import Store
from csdn.params import mistakes
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json, atomic_write, locked, remove_temp, rename_flushed
from csdn.search.images import read_source

if TYPE_CHECKING:
    import faiss

FORMAT: Final = 1
MANIFEST = "gallery.json"
PART_BYTES = 64 * 2**20  # of a part's features, at most: what adding images holds in memory
NO_UPLOADS: Mapping[str, bytes] = MappingProxyType({})
UPLOAD = "upload:"  # sources of images that the gallery itself keeps
_UPLOAD_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]+")
_OURS = re.compile(r"[0-9a-f]{16}\.(npy|parquet)|index-[0-9a-f]{16}\.faiss")
ROWS = pa.schema(
    {
        "id": pa.int64(),  # never given again, and ascending over the whole gallery
        "source": pa.string(),
        "person": pa.string(),  # "" where nobody has said whom the image shows
        "camera": pa.string(),
        "modality": pa.string(),
        "time": pa.timestamp("s", "UTC"),  # null: unknown
        "size": pa.int64(),  # bytes
        "sha256": pa.binary(32),
    }
)

Name = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=1)]
Dtype = Literal["float16", "float32"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PartEntry(_Entry):
    """A part in gallery.json."""

    name: Name
    images: Count


class IndexEntry(_Entry):
    """The index in gallery.json: it has the images up to the id `last`."""

    name: Name
    last: Annotated[int, Field(ge=0)]
    images: Count
    recall: Annotated[float, Field(ge=0, le=1)]  # recall@10 against exact search
    queries: Count  # by which the recall was measured


class Manifest(_Entry):
    """The content of gallery.json."""

    format: Literal[1]
    model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    dimension: Count
    dtype: Dtype
    flip_tta: bool
    next_id: Annotated[int, Field(ge=0)] = 0
    parts: list[PartEntry] = []
    index: IndexEntry | None = None


@dataclass(frozen=True)
class Part:
    """A part in use: features [n, D], mapped from the disk, and the rows of its images."""

    name: str
    features: np.ndarray
    rows: pa.Table

    def __len__(self) -> int:
        return len(self.features)


class Gallery:
    """A gallery as it was when it was opened or last changed by this object; `refresh` looks again.

    folder: of the files on this machine; of a gallery in an object store a copy in the user's cache.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.store = Store(self.address) if "://" in address else None
        self.folder = _cache_of(self.address) if self.store else Path(address)
        self.parts: list[Part] = []

    @classmethod
    def open(cls, address: str) -> Gallery:
        """Raises UserError where there is no gallery, or it is damaged."""
        gallery = cls(address)
        gallery.refresh()
        if gallery.store:  # what others have removed is to leave this machine too
            with suppress(UserError), gallery._locked(wait=False):  # a writer does it as well
                gallery._remove_unnamed_here()
        return gallery

    @classmethod
    def create(cls, address: str, model: str, dimension: int, dtype: Dtype, flip_tta: bool) -> Gallery:
        """An empty gallery of features of the model with this hash; raises UserError where one is there."""
        gallery = cls(address)
        if not gallery.store and not gallery.exists() and gallery._has_other_files():
            raise UserError(f"{address}: the folder is not empty; name a new one")
        gallery.folder.mkdir(parents=True, exist_ok=True)
        gallery.manifest = Manifest(
            format=FORMAT, model=model, dimension=dimension, dtype=dtype, flip_tta=flip_tta
        )
        with gallery._locked():
            if gallery.exists():
                raise UserError(f"{address}: a gallery is there already; `csdn gallery add` adds to it")
            gallery._publish(gallery.manifest)
        return gallery

    def exists(self) -> bool:
        """Whether a gallery is at the address."""
        if self.store:
            return self.store.find(MANIFEST) is not None
        return (self.folder / MANIFEST).exists()

    def _has_other_files(self) -> bool:
        own = f".{MANIFEST}."  # the lock, and what a killed run left
        return self.folder.exists() and any(not path.name.startswith(own) for path in self.folder.iterdir())

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def part_images(self) -> int:
        """The images of a part at most."""
        return max(1, PART_BYTES // (self.manifest.dimension * np.dtype(self.manifest.dtype).itemsize))

    def refresh(self) -> None:
        """Read gallery.json again, and open the parts that are new in it."""
        for last in (False, True):
            self.manifest = self._read_manifest()
            opened = {part.name: part for part in self.parts}
            try:
                self.parts = [opened.get(entry.name) or self._open(entry) for entry in self.manifest.parts]
                return
            except FileNotFoundError as error:  # a writer has replaced the part since
                if last:
                    raise UserError(f"{self.address}: {error.filename} is missing; {self._again()}") from None

    def check_model(self, model: str, folder: str | Path) -> None:
        """Raise UserError unless the gallery's features are of the model with this hash, from `folder`."""
        if self.manifest.model != model:
            raise UserError(
                f"{self.address}: its features are of model {self.manifest.model[:12]}, and {folder} is "
                f"model {model[:12]}. Embed its images again: csdn gallery build --from {self.address} "
                f"--out {self.address}-{model[:8]} --model {folder}"
            )

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of ROWS over all images, in their order."""
        columns = [part.rows[name] for part in self.parts]
        return pa.chunked_array([c for column in columns for c in column.chunks], ROWS.field(name).type)

    def read_image(self, source: str) -> bytes:
        """The bytes of an image by its source. Raises UserError where it is not there any more."""
        if (name := _upload(source)) is None:
            return read_source(source)
        if not self.store:
            return read_source(str((self.folder / name).absolute()))
        if found := self.store.find(name):
            return self.store.read(found)
        raise UserError(f"{self.store.address_of(name)}: no such image")

    # ---- changes

    def add(self, features: np.ndarray, rows: pa.Table, uploads: Mapping[str, bytes] = NO_UPLOADS) -> None:
        """Add images: features [n, D] of unit length, and their rows (ROWS, but for the id).

        An image with the source of one that is there replaces it. uploads: name -> bytes of the images whose
        source is `upload:<name>`.
        """
        with self._change() as parts:
            for name, data in uploads.items():
                self._keep_upload(f"uploads/{name}", data)
            gone = rows["source"].combine_chunks()
            parts[:] = self._without(parts, lambda part: pc.is_in(part.rows["source"], gone))
            first = self.manifest.next_id
            rows = rows.add_column(0, "id", pa.array(np.arange(first, first + len(rows))))
            self.manifest = self.manifest.model_copy(update={"next_id": first + len(rows)})
            for start in range(0, len(features), self.part_images):
                taken = slice(start, start + self.part_images)
                parts.append(self._write(features[taken], rows.slice(start, self.part_images)))
                self._merge_last(parts)

    def remove(self, people: Sequence[str], contents: Collection[str] = ()) -> int:
        """Remove all images of these people, uploaded files too; returns their number.

        contents: SHA-256 of further images. Raises UserError for a name that nobody has.
        """
        labels = {name if label_fault(name) else canonical_label(name) for name in people}
        names = pa.array(sorted(labels), pa.string())
        with self._change() as parts:
            known = {*pc.unique(self.column("person")).to_pylist()} - {""}
            if unknown := sorted({*names.to_pylist()} - known):
                raise UserError(f"{self.address}: nobody is called {', '.join(map(repr, unknown))}")
            hashes = pa.array([bytes.fromhex(one) for one in contents], pa.binary(32))

            def is_gone(rows: pa.Table | Gallery) -> pa.ChunkedArray:
                return pc.or_(pc.is_in(rows.column("person"), names), pc.is_in(rows.column("sha256"), hashes))

            gone = is_gone(self)
            ids, sources = self.column("id").filter(gone), self.column("source").filter(gone)
            parts[:] = self._without(parts, lambda part: is_gone(part.rows))
            if entry := self.manifest.index:
                left = np.concatenate([[], *(part.rows["id"].to_numpy() for part in parts)])
                # With images that others have replaced since: the index has their old features.
                self._remove_from_index(entry, np.setdiff1d(np.arange(entry.last + 1), left))
            for source in sources.to_pylist():  # before the rows, so that a killed removal can be repeated
                if name := _upload(source):
                    self._remove_file(name)
        return len(ids)

    def set_model(self, model: str) -> None:
        """Name another hash of the model, whose file changed in what no feature depends on."""
        with self._locked():
            self.refresh()
            self._publish(self.manifest.model_copy(update={"model": model}))

    def replace(self, other: Gallery) -> bool:
        """Put another gallery's features, rows, model and index in force here; uploaded files stay.

        other: of the same images by another model. False, and nothing changes, where another process has
        changed this gallery since this object read it.
        """
        with self._locked():
            if self._read_manifest() != self.manifest:
                return False
            self.manifest = other.manifest
            self.parts = [self._write(part.features, part.rows) for part in other.parts]
            entries = [PartEntry(name=part.name, images=len(part)) for part in self.parts]
            if entry := other.manifest.index:
                self._write_index(entry, partial(shutil.copyfile, other.index_path(entry)))
            self._publish(other.manifest.model_copy(update={"parts": entries}))
        return True

    def set_index(self, entry: IndexEntry, index: faiss.IndexIVF, ids: np.ndarray) -> None:
        """Put an index of the images with these ids in force, without those removed meanwhile."""
        from csdn.search.index import without, write_index

        with self._locked():
            self.refresh()
            gone = np.setdiff1d(ids, self.column("id").to_numpy())
            entry = entry.model_copy(update={"images": len(ids) - len(gone)})
            self._write_index(entry, partial(write_index, without(index, gone) if len(gone) else index))
            self._publish(self.manifest.model_copy(update={"index": entry}))

    def _remove_from_index(self, entry: IndexEntry, ids: np.ndarray) -> None:
        """Write the index again without some images."""
        from csdn.search.index import read_index, without, write_index

        index = without(read_index(self.index_path(entry)), ids)
        if not index.ntotal:
            self.manifest = self.manifest.model_copy(update={"index": None})
            return
        name = hashlib.sha256(f"{entry.name} {ids.tolist()}".encode()).hexdigest()[:16]
        entry = entry.model_copy(update={"name": name, "images": index.ntotal})
        self._write_index(entry, partial(write_index, index))
        self.manifest = self.manifest.model_copy(update={"index": entry})

    def _write_index(self, entry: IndexEntry, write: Callable[[Path], None]) -> None:
        path = self.folder / f"index-{entry.name}.faiss"
        with atomic_write(path) as temporary:
            write(temporary)
        if self.store:
            self.store.put(path.name, path)

    def index_path(self, entry: IndexEntry) -> Path:
        """The index's file on this machine."""
        path = self.folder / f"index-{entry.name}.faiss"
        self._fetch(path.name)
        return path

    @contextmanager
    def _change(self) -> Iterator[list[Part]]:
        """Yield the parts as they are now, to be changed in place, and put the changed list in force."""
        with self._locked():
            self.refresh()
            remove_temp(self.folder)
            parts = list(self.parts)
            yield parts
            entries = [PartEntry(name=part.name, images=len(part)) for part in parts]
            self._publish(self.manifest.model_copy(update={"parts": entries}))
            self.parts = parts

    @contextmanager
    def _locked(self, wait: bool = True) -> Iterator[None]:
        with locked(self.folder / MANIFEST, wait):
            yield

    def _without(self, parts: Sequence[Part], gone: Callable[[Part], pa.ChunkedArray]) -> list[Part]:
        """The parts without some of their images."""
        left = []
        for part in parts:
            kept = ~gone(part).to_numpy()
            if kept.all():
                left.append(part)
            elif kept.any():
                left.append(self._write(part.features[kept], part.rows.filter(pa.array(kept))))
        return left

    def _merge_last(self, parts: list[Part]) -> None:
        """Merge the last part with those before it that are no larger, up to the size of a full part.

        So small additions leave few parts, and each image is written a few times at most.
        """
        while len(parts) > 1 and len(parts[-1]) + len(parts[-2]) <= self.part_images:
            if len(parts[-2]) > 2 * len(parts[-1]):
                return
            last, before = parts.pop(), parts.pop()
            features = np.concatenate([before.features, last.features])
            parts.append(self._write(features, pa.concat_tables([before.rows, last.rows])))

    def copy_uploads(self, other: Gallery) -> None:
        """Keep the uploaded files of another gallery here too."""
        for source in other.column("source").to_pylist():
            if name := _upload(source):
                self._keep_upload(name, other.read_image(source))

    # ---- files

    def _keep_upload(self, name: str, data: bytes) -> None:
        self._write_file(name, data)
        if self.store:  # a copy here would outlive a removal by another machine
            (self.folder / name).unlink()

    def _write(self, features: np.ndarray, rows: pa.Table) -> Part:
        """Write a part's two files; nothing names it yet."""
        numbers, table = io.BytesIO(), io.BytesIO()
        np.save(numbers, np.ascontiguousarray(features, self.manifest.dtype), allow_pickle=False)
        pq.write_table(rows.cast(ROWS).combine_chunks(), table)
        contents = {".npy": numbers.getbuffer(), ".parquet": table.getbuffer()}
        digest = hashlib.sha256()
        for content in contents.values():
            digest.update(content)
        name = digest.hexdigest()[:16]
        for ending, content in contents.items():
            self._write_file(f"{name}{ending}", content)
        return self._open(PartEntry(name=name, images=len(features)))

    def _write_file(self, name: str, data: bytes | memoryview) -> None:
        path = self.folder / name
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
        if self.store:
            self.store.put(name, path)

    def _remove_file(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        if self.store:
            self.store.remove(name)

    def _open(self, entry: PartEntry) -> Part:
        """Raises FileNotFoundError where a file is missing, UserError where it is not what was written."""
        for ending in (".npy", ".parquet"):
            self._fetch(f"{entry.name}{ending}")
        path = self.folder / f"{entry.name}.npy"
        try:
            # "c": pages are read when needed; writing to them, which nobody does, would not reach the file.
            features = np.load(path, mmap_mode="c", allow_pickle=False)
            rows = pq.read_table(self.folder / f"{entry.name}.parquet", schema=ROWS)
        except FileNotFoundError:
            raise
        except (ValueError, OSError, EOFError, pa.ArrowException) as error:
            raise UserError(
                f"{self.address}: part {entry.name} is damaged ({error}); {self._again()}"
            ) from None
        shape = (entry.images, self.manifest.dimension)
        if features.shape != shape or features.dtype != self.manifest.dtype or len(rows) != len(features):
            raise UserError(f"{self.address}: part {entry.name} is not what was written; {self._again()}")
        return Part(entry.name, features, rows)

    def _fetch(self, name: str) -> None:
        """Copy a file of the store into the folder, unless it is there."""
        path = self.folder / name
        if not self.store or path.exists():
            return
        if (found := self.store.find(name)) is None:
            raise FileNotFoundError(2, "no such object", name)
        data = self.store.read(found)
        self.folder.mkdir(parents=True, exist_ok=True)
        # A name of its own, as other processes may fetch the same file now.
        with NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".partial", delete=False) as temporary:
            temporary.write(data)
        rename_flushed(Path(temporary.name), path)

    def _read_manifest(self) -> Manifest:
        path = self.folder / MANIFEST
        where, advice = f"{self.address}/{MANIFEST}", self._again()
        try:
            if self.store:
                found = self.store.find(MANIFEST)
                if found is None:
                    raise FileNotFoundError
                data = self.store.read(found)
            else:
                data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.address}: no gallery is there; make one: "
                f"csdn gallery build --images FOLDER --out {self.address}"
            ) from None
        try:
            return Manifest.model_validate(parse_json(data, where, advice))
        except ValidationError as error:
            problems = "\n".join(mistakes(error, Manifest))
            raise UserError(f"{where}: not a gallery of format {FORMAT}; {advice}\n{problems}") from None

    def _publish(self, manifest: Manifest) -> None:
        """Put a manifest in force, and remove the files that it does not name."""
        self._write_file(MANIFEST, as_json(manifest.model_dump()))
        self.manifest = manifest
        self._remove_unnamed()

    def _remove_unnamed(self) -> None:
        self._remove_unnamed_here()
        if self.store:
            named = self._named()
            for found in list(self.store.objects()):
                if _OURS.fullmatch(found.name) and found.name not in named:
                    self.store.remove(found.name)

    def _remove_unnamed_here(self) -> None:
        named = self._named()
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in named:
                path.unlink()

    def _named(self) -> set[str]:
        """The files of the parts and of the index."""
        names = {f"{entry.name}{ending}" for entry in self.manifest.parts for ending in (".npy", ".parquet")}
        index = self.manifest.index
        return names | {f"index-{index.name}.faiss"} if index else names

    def _again(self) -> str:
        again = f"remove {self.address}, and run `csdn gallery build` again"
        if not self.store:
            return again
        return f"remove {self.folder}, this machine's copy, and try again; if that fails too, {again}"


def _upload(source: str) -> str | None:
    """Where the gallery keeps an image that came without an address; None for any other source."""
    name = source.removeprefix(UPLOAD)
    return f"uploads/{name}" if name != source and _UPLOAD_NAME.fullmatch(name) else None


def _cache_of(address: str) -> Path:
    """The folder of this machine for the files of a gallery in an object store."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "csdn/galleries" / hashlib.sha256(address.encode()).hexdigest()[:16]
