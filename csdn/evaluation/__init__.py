"""Test features, protocols and figures; needs torch and NumPy alone."""

from csdn.evaluation.features import embed_with_mirror
from csdn.evaluation.metrics import QueryMetrics, RankMetrics, query_metrics, rank_metrics, top_ranked
from csdn.evaluation.protocols import Search, protocol

__all__ = [
    "QueryMetrics",
    "RankMetrics",
    "Search",
    "embed_with_mirror",
    "protocol",
    "query_metrics",
    "rank_metrics",
    "top_ranked",
]
