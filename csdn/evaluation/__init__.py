"""Test features, protocols and figures; needs torch and NumPy alone."""

from csdn.evaluation.features import embed_with_mirror
from csdn.evaluation.metrics import QueryMetrics, RankMetrics, query_metrics, rank_metrics, top_ranked
from csdn.evaluation.own_features import evaluate_features
from csdn.evaluation.protocols import Search, protocol, rule_cameras

__all__ = [
    "QueryMetrics",
    "RankMetrics",
    "Search",
    "embed_with_mirror",
    "evaluate_features",
    "protocol",
    "query_metrics",
    "rank_metrics",
    "rule_cameras",
    "top_ranked",
]
