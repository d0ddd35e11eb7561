"""The largest differences to the published implementation: the table of docs/parity.md.

    python benchmarks/parity.py

Runs the parity tests against the golden vectors and prints the largest difference of each value.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from golden_vectors import FOLDER, MEASURED

FILES = ("test_parity_forward.py", "test_parity_training.py", "test_schedules.py", "test_metrics.py")


def main() -> None:
    code = pytest.main(
        ["-q", "--no-header", "-p", "no:cacheprovider", *(str(FOLDER.with_name(name)) for name in FILES)]
    )
    if code:
        sys.exit(code)
    print("\n| value | allowed | largest difference |\n|---|---|---|")
    for what, (difference, tolerance) in MEASURED.items():
        print(f"| {what} | {tolerance:.0e} | {difference:.1e} |")


if __name__ == "__main__":
    main()
