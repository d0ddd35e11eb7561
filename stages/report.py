"""One page that shows it all: report/index.html."""

from pathlib import Path

from csdn.params import load_params
from csdn.process import run_stage
from csdn.report.page import write_report


def main() -> None:
    page = write_report(load_params(), root=Path(), out=Path("report"))
    print(f"report: {page} (one file, opens offline)")


if __name__ == "__main__":
    run_stage(main)
