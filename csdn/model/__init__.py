"""The network, with weights of CLIP, of a saved folder, or of the authors' published checkpoints."""

from csdn.model.backbone import fuse_batch_norms
from csdn.model.clip import Clip, convert, fetch_clip, load_clip
from csdn.model.io import load, read_config, save
from csdn.model.network import CSDN, MODALITIES, ModelConfig, TrainingOutputs
from csdn.model.published import ImportReport, import_published, load_published

__all__ = [
    "CSDN",
    "MODALITIES",
    "Clip",
    "ImportReport",
    "ModelConfig",
    "TrainingOutputs",
    "convert",
    "fetch_clip",
    "fuse_batch_norms",
    "import_published",
    "load",
    "load_clip",
    "load_published",
    "read_config",
    "save",
]
