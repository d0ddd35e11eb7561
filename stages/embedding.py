"""Stage 2 of training: the image encoder, guided by the fused text features of each training person."""

from functools import partial
from pathlib import Path

from csdn.runtime.process import run_stage


def main() -> None:
    # Imported here, as the imports take seconds: `run_stage` first makes this process end with DVC's.
    from csdn.runtime.console import stage

    with stage("embedding") as progress:
        from csdn.model.device import with_precision
        from csdn.params import load_params
        from csdn.training.champion import read_champion
        from csdn.training.embedding import run_embedding, train_local
        from csdn.training.warm_start import WarmStart

        params, start = with_precision(load_params(), partial(print, "embedding:")), read_champion().start
        warm = WarmStart(start) if start else None
        if params.scaling.workers:
            from csdn.cluster.train import train_on_ray as train
        else:
            train = train_local
        run_embedding(
            params,
            data=Path("data"),
            prompts=Path("models/prompts"),
            out=Path("models/embedding"),
            metrics=Path("metrics/embedding.json"),
            train=train,
            progress=progress,
            warm=warm,
        )
        print("embedding: model -> models/embedding; load it anywhere with csdn.load")


if __name__ == "__main__":
    run_stage(main, "embedding", reduce="embedding.identities_per_batch or embedding.images_per_identity")
