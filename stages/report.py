"""Stage report: all results on one page, report/index.html."""

from pathlib import Path

from csdn.runtime.process import run_stage


def main() -> None:
    # Imported here, as the imports take seconds: `run_stage` first makes this process end with DVC's.
    from csdn.cli.summary import show_unless_deferred
    from csdn.runtime.console import stage

    with stage("report"):
        from csdn.params import load_params
        from csdn.report.page import write_report

        params = load_params()
        page = write_report(params, root=Path(), out=Path("report"))
        print(f"report: {page} (one file, opens offline)")
        if params.report.store:
            from csdn.report.page import publish  # it imports a client of the object store, which few need

            print(f"report: a copy is at {publish(page, params.report.store)}")
    show_unless_deferred()


if __name__ == "__main__":
    run_stage(main, "report", reduce="report.queries")
