"""Stage evaluate: metrics of the trained model and of the baselines on the test people, by the protocol."""

from functools import partial
from pathlib import Path

from csdn.runtime.process import run_stage


def main() -> None:
    # Imported here, as the imports take seconds: `run_stage` first makes this process end with DVC's.
    from csdn.runtime.console import stage

    with stage("evaluate") as progress:
        from csdn.evaluation.headline import one_line
        from csdn.evaluation.run import run_evaluation
        from csdn.model.device import with_precision
        from csdn.params import load_params

        params = with_precision(load_params(), partial(print, "evaluate:"))
        if params.scaling.workers:
            from csdn.cluster.extract import extract_on_ray as embedder
        else:
            from csdn.data.features import extract_local as embedder
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
    run_stage(main, "evaluate", reduce="evaluation.batch_size")
