"""Test people: figures of the trained model and of the baselines, by the protocol."""

from pathlib import Path

from csdn.process import quick_imports, run_stage


def main() -> None:
    # Imported here, once a killed DVC would take this process along: they take seconds.
    from csdn.console import stage

    with stage("evaluate") as progress:
        with quick_imports():
            from csdn.evaluation.job import run_evaluation
            from csdn.evaluation.summary import one_line
            from csdn.params import load_params

        params = load_params()
        if params.scaling.workers:
            from csdn.cluster.walk import embedded_on_ray as embedder
        else:
            from csdn.walk import embedded_here as embedder
        figures = run_evaluation(
            params,
            data=Path("data"),
            model=Path("models/embedding"),
            out=Path("evaluation"),
            metrics=Path("metrics/evaluation.json"),
            progress=progress,
            embedder=embedder,
        )
        print(f"evaluate: {one_line(figures)}")


if __name__ == "__main__":
    run_stage(main, "evaluate", lower="evaluation.batch")
