"""GTO's tags of versions and of the champion; each is a function of a commit alone.

    csdn@v3.0.0        version v3 is this commit
    csdn#champion#7    the seventh change of champion: to the version of this commit

A tag's author and time are those of its promotion. So two clones create the same tag, byte for byte, and a
call that was killed can be repeated. GTO itself would write a tag before the push that carries it.
"""

from __future__ import annotations

import re
from pathlib import Path

from csdn.retraining.git import commit_of, format_commits, git

ARTIFACT, STAGE = "csdn", "champion"


def version_tag(version: str) -> str:
    """GTO's tag of a version; GTO supports semantic versions only.

    >>> version_tag("v3")
    'csdn@v3.0.0'
    """
    return f"{ARTIFACT}@{version}.0.0"


def versions(folder: Path) -> list[str]:
    """The versions with a local tag, oldest first."""
    return [f"v{number}" for number in sorted(_numbers(folder, rf"{ARTIFACT}@v([0-9]+)[.]0[.]0"))]


def next_version(folder: Path) -> str:
    """The version after the newest."""
    return f"v{1 + int(versions(folder)[-1][1:])}" if versions(folder) else "v1"


def known_tags(folder: Path) -> dict[str, str]:
    """{ref: object} of the registry's local tags; `origin` may lack them if it was added later."""
    form = "--format=%(refname) %(objectname)"
    listed = git(folder, "for-each-ref", form, f"refs/tags/{ARTIFACT}@*", f"refs/tags/{ARTIFACT}#*")
    return dict(line.split(" ") for line in listed.splitlines())


def commit_of_version(folder: Path, version: str) -> str | None:
    """The commit of a version; None if it has no local tag."""
    return commit_of(folder, f"refs/tags/{version_tag(version)}")


def tags_for(folder: Path, version: str, change: str) -> dict[str, str]:
    """{ref: tag object} that are missing for a change of champion; the objects are written, the refs are not.

    change: the commit whose champion.json names the version; for a new version also its own commit.
    """
    commit = commit_of_version(folder, version)
    refs = {}
    if commit is None:
        name = version_tag(version)
        refs[f"refs/tags/{name}"] = _tag(folder, name, change, change, f"Version {version} of {ARTIFACT}")
    counter = max(_numbers(folder, rf"{ARTIFACT}#{STAGE}#([0-9]+)"), default=0)
    present = counter and commit_of(folder, f"refs/tags/{ARTIFACT}#{STAGE}#{counter}")
    if not present or present != commit:
        name = f"{ARTIFACT}#{STAGE}#{counter + 1}"
        text = f"{version} of {ARTIFACT} is the {STAGE}"
        refs[f"refs/tags/{name}"] = _tag(folder, name, commit or change, change, text)
    return refs


def _numbers(folder: Path, pattern: str) -> list[int]:
    names = (ref.removeprefix("refs/tags/") for ref in known_tags(folder))
    return [int(match[1]) for name in names if (match := re.fullmatch(pattern, name))]


def _tag(folder: Path, name: str, commit: str, change: str, message: str) -> str:
    maker = format_commits(folder, "%cn <%ce> %cd", "--date=raw", "--no-walk", change)[0]
    text = f"object {commit}\ntype commit\ntag {name}\ntagger {maker}\n\n{message}\n"
    return git(folder, "mktag", stdin=text.encode())
