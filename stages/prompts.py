"""Stage 1: text tokens of each training person and modality, and their integration."""

from pathlib import Path

from csdn.process import run_stage


def main() -> None:
    # Imported here, once a killed DVC would take this process along: they take seconds.
    from csdn.console import progress
    from csdn.params import load_params
    from csdn.training.prompt_job import run_prompts

    figures = run_prompts(
        load_params(),
        data=Path("data"),
        out=Path("models/prompts"),
        metrics=Path("metrics/prompts.json"),
        progress=progress,
    )
    print("prompts: the fused text names", end=" ")
    print(f"{figures['fused_names_visible']:.1f} % of the visible training images", end=" and ")
    print(f"{figures['fused_names_infrared']:.1f} % of the infrared ones -> models/prompts")


if __name__ == "__main__":
    run_stage(main)
