"""Stage 1: text tokens of each training person and modality, and their integration."""

from pathlib import Path

from csdn.process import run_stage


def main() -> None:
    # Imported here, once a killed DVC would take this process along: they take seconds.
    from csdn.console import stage

    with stage("prompts") as progress:
        from csdn.params import load_params
        from csdn.training.prompt_job import run_prompts

        params = load_params()
        if params.scaling.workers:
            from csdn.cluster.walk import embedded_on_ray as embedder
        else:
            from csdn.walk import embedded_here as embedder
        figures = run_prompts(
            params,
            data=Path("data"),
            out=Path("models/prompts"),
            metrics=Path("metrics/prompts.json"),
            progress=progress,
            embedder=embedder,
        )
        visible, infrared = figures["fused_names_visible"], figures["fused_names_infrared"]
        print(
            f"prompts: the fused text names {visible:.1f} % of visible, {infrared:.1f} % of infrared images"
        )


if __name__ == "__main__":
    run_stage(main, "prompts", lower="prompts.prompts.batch or prompts.integration.batch")
