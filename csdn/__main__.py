"""The command `csdn`, also as `python -m csdn`."""

from __future__ import annotations

import sys

from csdn.runtime.errors import explain_missing_package


def main() -> None:
    """Run a command; `pip install csdn` alone brings csdn.load and no commands."""
    try:
        from csdn.cli.main import main as run
    except ModuleNotFoundError as error:
        if (message := explain_missing_package(error)) is None:
            raise
        sys.exit(message)
    run()


if __name__ == "__main__":
    main()
