"""`champion.json`: which version of the model is the champion, and which one training starts from.

A promotion changes `champion` only, and the training stages depend on `start` only, so a promotion makes no
stage run again.
"""

from __future__ import annotations

import codecs
import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from csdn.params import mistakes
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json

CHAMPION = "champion.json"
RESTORE = "`git diff champion.json` shows what changed, `git checkout champion.json` restores it"

Version = Annotated[str, Field(pattern=r"^v[1-9][0-9]*$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Start(_Entry):
    """The version that training starts from, with the SHA-256 of its two files of weights."""

    version: Version
    prompts: Sha256  # of models/prompts/prompts.safetensors
    embedding: Sha256  # of models/embedding/model.safetensors


class Champion(Start):
    """The version in use: the run that trained it, its training data's size, and its headline figures."""

    run: Annotated[str, Field(pattern="^[0-9]{8}-[0-9a-f]{8}$")]
    people: Count
    images: Count
    date: datetime.date
    figures: dict[str, JsonValue]

    def as_start(self) -> Start:
        """This champion as the start of the next training."""
        return Start(version=self.version, prompts=self.prompts, embedding=self.embedding)


class ChampionFile(_Entry):
    """Both are None in a project without a promotion."""

    champion: Champion | None
    start: Start | None


def read_champion(root: str | Path = ".") -> ChampionFile:
    """Read the file in `root`; raises UserError naming each wrong key, its value and what is allowed."""
    path = Path(root) / CHAMPION
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the command in the project's root folder") from None
    return parse_champion(text, str(path))


def parse_champion(text: bytes, source: str) -> ChampionFile:
    """`read_champion` for the text of a file; source: its name in the UserError."""
    parse_json(text, source, RESTORE)  # pydantic accepts duplicate keys, NaN and any depth
    try:
        return ChampionFile.model_validate_json(text.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        problems = mistakes(error, ChampionFile)
        raise UserError("\n".join([f"{source}: not usable; {RESTORE}", *problems])) from None


def write_champion(file: ChampionFile, root: str | Path = ".") -> None:
    """Replace the file in `root` atomically."""
    write_json(Path(root) / CHAMPION, file.model_dump(mode="json"))
