"""The network of CSDN and its weights: from CLIP, from a folder of ours, or from a published checkpoint."""

from csdn.model.clip import Clip, load_clip
from csdn.model.clip_files import convert, fetch_clip
from csdn.model.config import MODALITIES, ModelConfig
from csdn.model.folding import folded
from csdn.model.network import CSDN, TrainingOutputs
from csdn.model.published import ImportReport, import_published, load_published
from csdn.model.storage import load, read_config, save

__all__ = [
    "CSDN",
    "MODALITIES",
    "Clip",
    "ImportReport",
    "ModelConfig",
    "TrainingOutputs",
    "convert",
    "fetch_clip",
    "folded",
    "import_published",
    "load",
    "load_clip",
    "load_published",
    "read_config",
    "save",
]
