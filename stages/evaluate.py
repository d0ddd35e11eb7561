"""Test people: figures of the trained model and of the baselines, by the protocol."""

from pathlib import Path

from csdn.process import run_stage


def main() -> None:
    # Imported here, once a killed DVC would take this process along: they take seconds.
    from csdn.console import progress
    from csdn.evaluation.job import run_evaluation
    from csdn.evaluation.scores import notes, table_lines
    from csdn.params import load_params

    figures = run_evaluation(
        load_params(),
        data=Path("data"),
        model=Path("models/embedding"),
        out=Path("evaluation"),
        metrics=Path("metrics/evaluation.json"),
        progress=progress,
    )
    print(*table_lines(figures), sep="\n")
    print(*(f"note: {note}" for note in notes(figures["counts"])), sep="\n")


if __name__ == "__main__":
    run_stage(main)
