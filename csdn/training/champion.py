"""`champion.json`: which version of the model is the champion, and from which one the present model started.

A promotion changes `champion` alone. The stages of training depend on `start` alone, so that a promotion
makes no stage run again.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from csdn.params import mistakes
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json

CHAMPION = "champion.json"
MENDED = "`git diff champion.json` shows what changed, `git checkout champion.json` brings it back"

Version = Annotated[str, Field(pattern=r"^v[1-9][0-9]*$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Start(_Entry):
    """The version that training starts from; the hashes are those of its two files of weights."""

    version: Version
    prompts: Sha256  # of models/prompts/prompts.safetensors
    embedding: Sha256  # of models/embedding/model.safetensors


class Champion(Start):
    """The version that is in use: the run that made it, what it was trained on, and its headline figures."""

    run: Annotated[str, Field(pattern="^[0-9]{8}-[0-9a-f]{8}$")]
    people: Count
    images: Count
    date: datetime.date
    figures: dict[str, JsonValue]

    def as_start(self) -> Start:
        """This champion as what the next model starts from."""
        return Start(version=self.version, prompts=self.prompts, embedding=self.embedding)


class ChampionFile(_Entry):
    """Both are None in a project that has promoted nothing yet."""

    champion: Champion | None
    start: Start | None


def read_champion(root: str | Path = ".") -> ChampionFile:
    """The file below `root`; raises UserError naming each wrong key, its value and what is allowed."""
    path = Path(root) / CHAMPION
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the command in the project's root folder") from None
    return parse_champion(text, str(path))


def parse_champion(text: bytes, source: str) -> ChampionFile:
    """What `read_champion` reads, from a file's text; `source` names it in the UserError."""
    parse_json(text, source, MENDED)  # pydantic takes doubled keys, NaN and any depth
    try:
        return ChampionFile.model_validate_json(text.decode("utf-8-sig"))
    except ValidationError as error:
        problems = mistakes(error, ChampionFile)
        raise UserError("\n".join([f"{source}: not usable; {MENDED}", *problems])) from None


def write_champion(file: ChampionFile, root: str | Path = ".") -> None:
    """Replace the file below `root`, whole or not at all."""
    write_json(Path(root) / CHAMPION, file.model_dump(mode="json"))
