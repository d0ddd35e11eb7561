"""The sizes of the published experiments: what must come out where the data is the published data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# (mode, shots) -> images of a gallery.
SYSU_GALLERIES = {("all", 1): 301, ("indoor", 1): 112, ("all", 10): 3010, ("indoor", 10): 1120}
SYSU_QUERIES = 3803
SYSU_VALID_QUERIES = {"all": 3803, "indoor": 2208}


def published_counts(name: str, counts: Mapping[str, Any], **options: Any) -> dict[str, int]:
    """What the counts of a search should be; empty where nothing is published, or the data is a miniature.

    Data is taken for the published one where at least half as many people are searched for.
    """
    expected = _expected(name, **options)
    return expected if 2 * counts["people"] >= expected.get("people", float("inf")) else {}


def _expected(name: str, mode: str = "all", shots: int = 1, **_: Any) -> dict[str, int]:
    if name in ("sysu", "sysu_official"):
        return {
            "people": 96,
            "queries": SYSU_QUERIES,
            "valid_queries": SYSU_VALID_QUERIES[mode],
            "gallery": SYSU_GALLERIES[mode, shots],
        }
    if name == "regdb":
        return {"people": 206, "queries": 2060, "valid_queries": 2060, "gallery": 2060}
    return {}
