"""The sizes of a network that is built and run in milliseconds."""

from csdn.model import ModelConfig

SMALL = ModelConfig(
    identities=3,
    image_size=(64, 32),
    depths=(1, 1, 1, 1),
    width=8,
    pool_heads=4,
    embed_dim=16,
    text_width=16,
    text_heads=2,
    text_layers=1,
)
