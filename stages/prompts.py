"""Stage 1 of training: learn the text tokens of each training person and modality, and fuse both texts."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from csdn.runtime.process import run_stage


def main() -> None:
    # Imported here, as the imports take seconds: `run_stage` first makes this process end with DVC's.
    from csdn.runtime.console import stage

    with stage("prompts") as progress:
        from csdn.model.device import with_precision
        from csdn.params import load_params
        from csdn.training.champion import read_champion
        from csdn.training.prompts import run_prompts
        from csdn.training.warm_start import WarmStart

        params, start = with_precision(load_params(), partial(print, "prompts:")), read_champion().start
        warm = WarmStart(start) if start else None
        if params.scaling.workers:
            from csdn.cluster.extract import extract_on_ray as embedder
        else:
            from csdn.data.features import extract_local as embedder
        figures = run_prompts(
            params,
            data=Path("data"),
            out=Path("models/prompts"),
            metrics=Path("metrics/prompts.json"),
            progress=progress,
            embedder=embedder,
            warm=warm,
        )
        print(f"prompts: {summary(figures)}")


def summary(figures: Mapping[str, float]) -> str:
    """The stage's metrics in one line."""
    if figures.get("new_people") == 0:
        return "no new people; the text features are those of the champion"
    visible, infrared = figures["fused_names_visible"], figures["fused_names_infrared"]
    whose = f" of the {figures['new_people']} new people" if "new_people" in figures else ""
    return f"the fused text names {visible:.1f} % of visible, {infrared:.1f} % of infrared images{whose}"


if __name__ == "__main__":
    run_stage(main, "prompts", reduce="prompts.tokens.batch_size or prompts.integration.batch_size")
