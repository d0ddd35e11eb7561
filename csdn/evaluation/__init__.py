"""Protocols, metrics and test features; needs only torch and NumPy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "QueryMetrics": "metrics",
    "RankMetrics": "metrics",
    "Search": "protocols",
    "embed_with_flip_tta": "baselines",
    "evaluate_features": "external",
    "protocol": "protocols",
    "query_metrics": "metrics",
    "rank_metrics": "metrics",
    "rule_cameras": "protocols",
    "rule_people": "protocols",
    "top_ranked": "metrics",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import the names above when they are used: the report reads figures without loading torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
