"""A promoted model takes over while the service runs.

A thread looks at the model's folder, and at the project's champion. When that is another model, it is loaded
beside the old one, the gallery's images are embedded by it into a folder of their own, and then both are
exchanged at once. Searches never wait, changes of the gallery only for the exchange. If it fails, such as
because an image is not there any more, the old model stays in use, and the log says why.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import TracebackType

from csdn.runtime.console import log, log_error
from csdn.runtime.errors import UserError, explain_os_error
from csdn.search.build import add_images, images_of, make_index, wants_index
from csdn.search.embedder import MODELS, Embedder, hash_of_model, models_in
from csdn.search.gallery import Gallery
from csdn.search.service import Service
from csdn.training.champion import CHAMPION, read_champion

WEIGHTS = "model.safetensors"
SECONDS = 2.0  # between two looks
RETRY_SECONDS = 60.0  # after a failure


class Promotion:
    """The thread that looks, for as long as the block runs."""

    def __init__(self, service: Service) -> None:
        self.service, self.ended = service, threading.Event()
        self.seen: tuple[tuple[int, ...] | None, ...] | None = None  # the first look compares hashes
        self._remove_unfinished()
        # A daemon: the process can end in the middle, as the gallery is whole at any time.
        self.thread = threading.Thread(target=self._watch, name="promotion", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()

    def _watch(self) -> None:
        wait = SECONDS
        while not self.ended.wait(wait):
            try:
                self.look()
                wait = SECONDS
            except Exception as error:  # the service goes on with what it has
                log_error(error if isinstance(error, UserError) else explain_os_error(error) or repr(error))
                wait = RETRY_SECONDS

    def look(self) -> None:
        """Take over what other processes have changed: the gallery's images, and the model."""
        service = self.service
        signature = self._signature()
        if signature is None:
            return  # between two models; DVC removes one before it links the next
        if signature != self.seen:
            folder = self._folder()
            found = hash_of_model(folder)
            if found != service.state.embedder.model_hash:
                self.promote(found, folder)
            service.model, self.seen = folder, signature
        with service.writing:
            service.refresh()

    def _folder(self) -> Path:
        """The folder that has the weights of the project's champion; the one in use where there is none."""
        root = self.service.settings.project
        if root and (root / CHAMPION).exists() and (champion := read_champion(root).champion):
            return models_in(root).get(champion.embedding, self.service.model)
        return self.service.model

    def _signature(self) -> tuple[tuple[int, ...] | None, ...] | None:
        """What changes with the weights and the champion, and is cheaper to read than the weights' hash."""
        if (own := _stat(self.service.model / WEIGHTS)) is None:
            return None
        root = self.service.settings.project
        others = [root / CHAMPION, *(root / folder / WEIGHTS for folder in MODELS)] if root else []
        return own, *map(_stat, others)

    def promote(self, model: str, folder: Path) -> None:
        """Exchange the model for that of `folder`, and the gallery's features; model: the weights' hash.

        On a UserError nothing has changed.
        """
        service = self.service
        current = service.state.gallery.manifest
        embedder = service.open_model(folder, current.flip_tta)
        if embedder.model_hash != model:  # the hash before the weights were read, and the one after
            raise UserError(f"{folder}: changed while it was read; the service looks again")
        with service.writing:
            if service.follow(embedder):
                return
        images = len(service.state.gallery)
        _note(f"model {embedder.model_hash[:12]}: embeds the gallery's {images} images")
        following = self._following(embedder)
        self._catch_up(following, embedder)
        if wants_index(following):
            make_index(following)
        exchanged = False
        while not exchanged:
            with service.writing:
                service.refresh()
                self._catch_up(following, embedder)  # with what was added and removed meanwhile
                exchanged = service.exchange(embedder, following)
        shutil.rmtree(following.folder, ignore_errors=True)
        _note(f"model {embedder.model_hash[:12]} is in use")

    def _following(self, embedder: Embedder) -> Gallery:
        """The gallery of the new model's features, beside the present one's files on this machine."""
        gallery = self.service.state.gallery
        folder = gallery.folder.with_name(f"{gallery.folder.name}.next-{embedder.model_hash[:8]}")
        self._remove_unfinished(folder)
        if Gallery(str(folder)).exists():
            return Gallery.open(str(folder))
        return Gallery.create(
            str(folder),
            embedder.model_hash,
            embedder.dimension,
            gallery.manifest.dtype,
            gallery.manifest.flip_tta,
        )

    def _remove_unfinished(self, keep: Path | None = None) -> None:
        """Remove what was embedded for models that never came into use."""
        present = self.service.state.gallery.folder
        for folder in present.parent.iterdir():
            if folder.name.startswith(f"{present.name}.next-") and folder != keep:
                shutil.rmtree(folder)

    def _catch_up(self, following: Gallery, embedder: Embedder) -> None:
        """Embed the images that only the present gallery has, and remove those that it has no more."""
        present = self.service.state.gallery
        sources = set(present.column("source").to_pylist())
        rows = (following.column(name).to_pylist() for name in ("source", "person"))
        # People are removed as a whole; images of theirs that were added after that are embedded again.
        if removed := {person for source, person in zip(*rows, strict=True) if source not in sources}:
            following.remove(sorted(removed))
        refused = add_images(following, images_of(present), embedder, self.service.settings.grey16)
        if refused:
            source, reason = refused[0]
            raise UserError(
                f"{source}: {reason}; the old model stays in use. Put the image back, or remove it"
            )


def _stat(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced; None where it is missing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _note(text: str) -> None:
    log("note", stage="serve", phase="serve", text=text)
