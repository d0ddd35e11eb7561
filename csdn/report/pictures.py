"""Images of the data as data URIs: the page holds its own pictures."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from csdn.data.dataset import SampleTable
from csdn.data.images import EXTENSIONS, decode
from csdn.data.reading import open_shards

HEIGHT = 144  # pixels; larger images are reduced to it
QUALITY = 85  # of JPEG


class Pictures:
    """Reads images of a table out of its shards, each once."""

    def __init__(self, table: SampleTable, shards: str | Path) -> None:
        self.table, self.shards = table, open_shards(shards)
        self.uris: dict[int, str] = {}

    def uri(self, row: int) -> str:
        """Row `row` of the table as `data:image/jpeg;base64,...`."""
        if row not in self.uris:
            table = self.table
            shard = table.shard_names[table.shard[row]]
            data = self.shards.read(shard, int(table.offset[row]), int(table.size[row]))
            self.uris[row] = data_uri(data, EXTENSIONS[table.extension[row]])
        return self.uris[row]


def data_uri(data: bytes, extension: str) -> str:
    """An image file, reduced to HEIGHT pixels of height, as a JPEG data URI."""
    image = Image.fromarray(decode(data, extension))
    if image.height > HEIGHT:
        image = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
