"""Protocols, metrics and test features; needs only torch and NumPy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csdn.evaluation.baselines import embed_with_flip_tta
    from csdn.evaluation.external import evaluate_features
    from csdn.evaluation.metrics import QueryMetrics, RankMetrics, query_metrics, rank_metrics, top_ranked
    from csdn.evaluation.protocols import Search, protocol, rule_cameras, rule_people

__all__ = [
    "QueryMetrics",
    "RankMetrics",
    "Search",
    "embed_with_flip_tta",
    "evaluate_features",
    "protocol",
    "query_metrics",
    "rank_metrics",
    "rule_cameras",
    "rule_people",
    "top_ranked",
]
_MODULES = {
    "baselines": ("embed_with_flip_tta",),
    "metrics": ("QueryMetrics", "RankMetrics", "query_metrics", "rank_metrics", "top_ranked"),
    "external": ("evaluate_features",),
    "protocols": ("Search", "protocol", "rule_cameras", "rule_people"),
}


def __getattr__(name: str) -> Any:
    """Import the names above when they are used: the report reads figures without loading torch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
