"""What the shapes of a CLIP's weights do not say of it, as open_clip knows it.

Files that this package writes carry it in their header. open_clip, which takes four seconds to import, is
asked where a file is made, and of files that others have made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from csdn.documents import parse_json
from csdn.errors import UserError

Shapes = Mapping[str, Sequence[int]]
_ENTRY = "csdn.clip"  # in the header of a safetensors file


@dataclass(frozen=True)
class ClipFacts:
    """Of a ResNet CLIP by open_clip's name; template: token ids of the prompt template, without padding."""

    name: str
    template: tuple[int, ...]
    pool_heads: int
    text_heads: int
    text_activation: str


def header(facts: ClipFacts, found: Shapes) -> dict[str, str]:
    """Of a safetensors file with tensors of these shapes, which have been held against open_clip.

    One entry: safetensors writes several in an order that differs from call to call.
    """
    return {_ENTRY: json.dumps({**asdict(facts), "shapes": _digest(found)}, sort_keys=True)}


def facts_in(header: Mapping[str, str] | None, name: str, found: Shapes) -> ClipFacts | None:
    """What a file says of itself, if it says that it is the CLIP `name` and has the shapes it had then."""
    try:
        said = parse_json((header or {})[_ENTRY], "the header")
        if said.pop("shapes") != _digest(found) or said["name"] != name:
            return None
        return ClipFacts(**said | {"template": tuple(said["template"])})
    except (UserError, KeyError, TypeError, AttributeError):  # none of ours, or of another version
        return None


def _digest(found: Shapes) -> str:
    listing = json.dumps(sorted((name, list(shape)) for name, shape in found.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
