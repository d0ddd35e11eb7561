"""champion.json says who the champion is and what training starts from; a mistake in it is named."""

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csdn.runtime.errors import UserError
from csdn.training.champion import Champion, ChampionFile, read_champion, write_champion

ROOT = Path(__file__).parents[2]
CHAMPION = Champion(
    version="v2",
    run="20260102-0123abcd",
    prompts="a" * 64,
    embedding="b" * 64,
    people=120,
    images=3600,
    date=datetime.date(2026, 1, 2),
    figures={"test_people": 80, "trained": {"visible_to_infrared": {"rank1": 61.5}}},
)


def written(folder, change):
    """The folder with a good file of which `change` replaces keys of the champion."""
    value = {"champion": CHAMPION.model_dump(mode="json"), "start": None}
    value["champion"].update(change)
    (folder / "champion.json").write_text(json.dumps(value))
    return folder


def test_the_committed_file_has_no_champion():
    assert read_champion(ROOT) == ChampionFile(champion=None, start=None)


def test_what_is_written_is_read_again_and_the_committed_file_is_written_so(tmp_path):
    file = ChampionFile(champion=CHAMPION, start=CHAMPION.as_start())
    write_champion(file, tmp_path)
    assert read_champion(tmp_path) == file
    shutil.copy(ROOT / "champion.json", tmp_path)
    write_champion(read_champion(tmp_path), tmp_path)
    assert (tmp_path / "champion.json").read_bytes() == (ROOT / "champion.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "2"}, "champion.version = '2': String should match"),
        ({"prompts": "A" * 64}, "champion.prompts = 'AAAA"),
        ({"embedding": ""}, "champion.embedding = ''"),
        ({"run": "yesterday"}, "champion.run = 'yesterday'"),
        ({"people": "many"}, "champion.people = 'many': Input should be a valid integer"),
        ({"date": "in May"}, "champion.date = 'in May'"),
        ({"figures": [1]}, "champion.figures = [1]"),
        ({"colour": "red"}, "champion.colour: unknown key"),
    ],
)
def test_a_mistake_is_named(tmp_path, change, says):
    with pytest.raises(UserError, match="git checkout champion") as error:
        read_champion(written(tmp_path, change))
    assert f"{tmp_path}/champion.json: not usable" in str(error.value)
    assert f"  {says}" in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"champion": null}', "<<<<<<< HEAD\n{}", b"\xff"])
def test_a_file_that_is_no_such_mapping_is_refused(tmp_path, text):
    path = tmp_path / "champion.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"champion\.json.*git checkout champion\.json"):
        read_champion(tmp_path)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="root folder"):
        read_champion(tmp_path)


def test_reading_it_takes_neither_torch_nor_dvc():
    code = "import sys, csdn.training.champion; sys.exit(bool({'torch', 'dvc'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
