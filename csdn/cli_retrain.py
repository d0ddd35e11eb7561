"""`csdn gate`: retraining's steps by hand."""

from __future__ import annotations

from pathlib import Path

from csdn.params import load_params


def gate() -> None:
    """Compare models/embedding with the champion: may it replace it? Writes metrics/gate.json."""
    # Imported here: torch takes seconds.
    from csdn.console import stage
    from csdn.retraining.gate_table import table_lines

    params = load_params()
    with stage("gate") as progress:
        from csdn.retraining.gate_job import run_gate

        if params.scaling.workers:
            from csdn.cluster.walk import embedded_on_ray as embedder
        else:
            from csdn.walk import embedded_here as embedder
        result = run_gate(params, Path(), progress, embedder)
    print(*table_lines(result), sep="\n")
