"""An image that is no more what ingest put into its shard, in words: asked for only once it was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from csdn.data.reading import Shards


def damaged_image(shards: Shards, shard: str, offset: int) -> str:
    """The message for the image at byte `offset` of a shard."""
    return (
        f"{shards.where(shard)}: the image at byte {offset}{_whose(shards, shard, offset)} is not what "
        f"ingest put there: the file was damaged or altered since. {shards.again}"
    )


def _whose(shards: Shards, shard: str, offset: int) -> str:
    """Which image it is, by the tables beside a folder of shards; nothing where they cannot say."""
    data = Path(shards.where(shard)).parent.parent
    columns = ["path", "person_row", "modality", "camera"]
    try:
        place = [("shard", "=", shard), ("offset", "=", offset)]
        row = pq.read_table(data / "samples.parquet", columns=columns, filters=place).to_pylist()[0]
        people = pq.read_table(data / "people.parquet", filters=[("row", "=", row["person_row"])])
        person = people["person"][0].as_py()
    except (pa.ArrowException, OSError, IndexError):
        return ""
    return f" ({row['path']}: {row['modality']}, camera {row['camera']}, person {person})"
