"""The four losses of CSDN: pure functions of the features and labels of the global batch."""

from csdn.losses.msel import msel
from csdn.losses.semantic import semantic
from csdn.losses.supcon import supcon
from csdn.losses.triplet import weighted_triplet

__all__ = ["msel", "semantic", "supcon", "weighted_triplet"]
