"""One page that shows it all: report/index.html."""

from pathlib import Path

from csdn.process import run_stage


def main() -> None:
    # Imported here, once a killed DVC would take this process along: they take seconds.
    from csdn.console import stage
    from csdn.ending import show_unless_asked_later

    with stage("report"):
        from csdn.params import load_params
        from csdn.report.page import write_report

        page = write_report(load_params(), root=Path(), out=Path("report"))
        print(f"report: {page} (one file, opens offline)")
    show_unless_asked_later()


if __name__ == "__main__":
    run_stage(main, "report", lower="report.queries")
