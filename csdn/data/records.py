"""What is known of an image before it is read: the record that every source gives, whatever its layout."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Modality(StrEnum):
    VISIBLE = "visible"
    INFRARED = "infrared"


# Codes in arrays: 0 visible, 1 infrared.
MODALITIES = tuple(Modality)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a drop.

    `path` is relative to the drop's root, with `/`; `person` and `camera` are the labels as given ("" means
    none); `size` is in bytes, 0 where only reading tells; `etag` names the content where the source knows it.
    A benchmark's authors say more: `sides`, "train" or "test" in each of their splits ("" where it is on no
    list), and `places`, where the image stands in their order of a gallery, from 0, for each of their trials.
    """

    path: str
    person: str
    modality: str
    camera: str
    size: int
    captured_at: str | None = None
    etag: str | None = None
    sides: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
