"""docs/webdataset.md: whoever knows WebDataset can train on the shards without this project's code."""

from __future__ import annotations

import re
import subprocess
import sys

from feed_data import write_data
from workspace import ROOT

PAGE = ROOT / "docs/webdataset.md"


def test_the_example_of_the_page_makes_batches_of_the_shards(tmp_path):
    """Run as it is on the page, in a process that cannot import csdn."""
    write_data(tmp_path / "data")
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert "csdn" not in program
    check = (
        "import itertools, sys\n"
        "sys.modules['csdn'] = None\n"
        f"{program}\n"
        "for visible, infrared, people in itertools.islice(batches, 5):\n"
        "    assert visible.shape == infrared.shape == (8, 288, 144, 3), visible.shape\n"
        "    assert len(set(people)) == 4 and people == sorted(people, key=people.index)\n"
        "print('five batches')\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "five batches\n", done.stderr
