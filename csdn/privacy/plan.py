"""The first step of `csdn forget`: a survey of the project and the plan that follows. Nothing changes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from csdn.ingest.forgotten import FORGOTTEN, TOMBSTONE, Forgotten, ForgottenPerson, read_forgotten
from csdn.params import Params, load_params
from csdn.privacy import places
from csdn.privacy.drop_removal import obstacle
from csdn.privacy.drops import DropImages, all_drops, images_in_drops
from csdn.privacy.objects import Objects
from csdn.privacy.rewrite import Removal
from csdn.privacy.survey import Survey, labels_of, survey
from csdn.retraining import git
from csdn.runtime.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What a survey found, with the project that it is about."""

    root: Path
    params: Params
    objects: Objects
    forgotten: Forgotten  # before
    survey: Survey
    drops: list[DropImages]

    @property
    def removal(self) -> Removal:
        return self.survey.removal

    @property
    def work(self) -> Path:
        return self.objects.temporary

    @property
    def person(self) -> ForgottenPerson | None:
        """The entry of a person who was forgotten before."""
        found = (self.forgotten.person(label) for label in self.removal.labels)
        return next((person for person in found if person), None)


def plan(root: Path, person: str, work: Path) -> Plan:
    """Survey the project for a person; copies of what only a remote has go to `work`. Raises UserError."""
    if git.git(root, "rev-parse", "--is-shallow-repository") == "true":
        raise UserError(f"{root}: a shallow clone lacks older versions; `git fetch --unshallow`, then again")
    params, forgotten = load_params(root / "params.yaml"), read_forgotten(root / FORGOTTEN)
    labels = labels_of(person, params, root)
    if not forgotten.salt:
        forgotten = replace(forgotten, salt=secrets.token_hex(16))
    known = next((one for label in sorted(labels) if (one := forgotten.person(label))), None)
    digest = forgotten.hash_of(min(labels))
    name = known.name if known else f"{TOMBSTONE}{digest[:12]}"
    images = frozenset(known.images) if known else frozenset()
    objects = Objects(root, work)
    drops, problems = all_drops(root, params)
    found = survey(root, Removal(labels, images, name), objects, forgotten, drops)
    found.missing += problems
    in_drops = images_in_drops(drops, found.removal, found.claimed, found.copies)
    return Plan(root, params, objects, forgotten, found, in_drops)


def plan_lines(found: Plan, shared: bool = False) -> list[str]:
    """The plan, for people: place by place what is there, and what becomes of it."""
    survey, params = found.survey, found.params
    old = "removed" if shared else "listed; --shared removes them"
    row = "no row" if survey.row is None else f"row {survey.row} of people.parquet becomes a tombstone"
    lines = [
        f"{found.removal.name}: {len(survey.images)} images in {len(survey.shards)} shards; {row}",
        *(f"{one.name}: tables and rows of models are made again without the person" for one in survey.sets),
    ]
    if survey.versions:
        names = ", ".join(survey.versions)
        lines.append(f"trained on the person: {names}; they stay usable, no training starts from them")
    if survey.found:
        lines.append("main: one commit records it, with what replaces what")
        lines.append("DVC's cache: the old objects are removed")
        lines.append("here: .state, working trees of runs, champion (fetched again) and report are removed")
    lines += [
        f"the DVC remote {one.name} ({one.address}): old objects are {old}" for one in found.objects.remotes
    ]
    if params.ingest.store:
        lines.append(f"{params.ingest.store}: old shards are {old}")
    if params.report.store:
        lines.append(f"{params.report.store}: reports that name the person are {old}")
    if params.scaling.checkpoint_dir:
        lines.append(
            f"{params.scaling.checkpoint_dir}: checkpoints of this clone and of runs are removed; "
            f"those of other clones are {old}"
        )
    lines += [f"{address}: the person is removed" for address in places.galleries_in(found.root)]
    for one in found.drops:
        if one.problem:
            lines.append(f"{one.drop}: not reached: {one.problem}")
        elif why := obstacle(one):
            lines.append(f"{one.drop}: {len(one.paths)} files are left: {why}; ingest leaves them out")
        else:
            lines.append(f"{one.drop}: {len(one.paths)} files are removed")
    return lines + [f"not reached: {line}" for line in survey.missing]
