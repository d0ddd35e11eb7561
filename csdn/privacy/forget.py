"""`csdn forget`: a person is removed, in an order in which a kill at any moment loses nothing.

1. plan       where the person is, and what will be done (csdn.privacy.plan); `--dry-run` ends here
2. prepare    new shards, tables and weights are written beside the old ones, and pushed to the old ones'
              remotes (csdn.privacy.prepare)
3. commit     one commit on main records the person in data/forgotten.json, with what replaces what. From here
              on ingest, training, gate and rollback use the new files, in every clone that has the commit
4. remove     the workspace's files are replaced, and the old ones removed, wherever that is allowed
              (csdn.privacy.places, csdn.privacy.drop_removal)

Before the commit nothing is replaced, so a killed command begins again. After it, everything that is left to
do follows from data/forgotten.json: the same command goes on, here or in another clone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from csdn.ingest.forgotten import FORGOTTEN, Forgotten, ForgottenPerson, forgotten_text, newest
from csdn.ingest.identities import parse_aliases
from csdn.ingest.ledger import LEDGER, Drop, as_document, parse_ledger
from csdn.privacy import places
from csdn.privacy.drop_removal import clean_drops, obstacle, present_listing
from csdn.privacy.drops import DropImages, all_drops, images_in_drops
from csdn.privacy.plan import Plan, plan, plan_lines
from csdn.privacy.prepare import Note, Prepared, prepare
from csdn.privacy.rewrite import Removal, scrub, scrub_file
from csdn.privacy.survey import SHARDS
from csdn.privacy.verify import Result, Search, verify
from csdn.retraining import branches, git, versions
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json
from csdn.search.model_card import CARD
from csdn.training.champion import CHAMPION, ChampionFile, read_champion

WORK = Path(".state/forget")  # of a command that is at work: copies, and what it has made


# Step 3: the commit on main.


def record(found: Plan, made: Prepared, reason: str) -> Forgotten:
    """data/forgotten.json with the person, and with what replaces what."""
    before, survey = found.forgotten, found.survey
    contents = {content for one in found.drops for content in one.contents} - survey.others
    labels = {*found.removal.labels, found.removal.name}
    person = ForgottenPerson(
        id=before.hash_of(min(found.removal.labels)),
        labels=tuple(sorted(map(before.hash_of, labels))),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        reason=reason,
        row=survey.row,
        images=tuple(sorted(survey.images | contents)),
        versions=tuple(survey.versions),
    )
    if old := found.person:
        person = replace(
            person,
            **{
                name: tuple(dict.fromkeys((*getattr(old, name), *getattr(person, name))))
                for name in ("labels", "images", "versions")
            },
            id=old.id,
            date=old.date,
            reason=old.reason,
            row=old.row if old.row is not None else person.row,
        )
    others = tuple(one for one in before.people if one != found.person)
    return replace(
        before,
        people=(*others, person),
        shards={**before.shards, **made.shards},
        weights={**before.weights, **made.weights},
        objects={**before.objects, **made.objects},
    )


def commit(found: Plan, forgotten: Forgotten, newest_commit: str, branch: str) -> list[str]:
    """Record the forgotten person on main, at `origin` too, and in this working tree; notes for people."""
    root = found.root
    files = {str(FORGOTTEN): forgotten_text(forgotten)} | _changed_files(found, forgotten, newest_commit)
    if all(data == git.file_at(root, newest_commit, name) for name, data in files.items()):
        return []  # another clone, or a call that was killed, has recorded it
    text = branches.commit_message(f"Forget a person: {found.removal.name}")
    made = git.commit_files(root, newest_commit, files, text)
    git.push(root, {f"refs/heads/{branch}": made})
    return branches.fast_forward_branch(root, branch, made)  # not the outputs: `remove` replaces them


def _changed_files(found: Plan, forgotten: Forgotten, at: str) -> dict[str, bytes]:
    """The tracked files that name the person, or what was replaced, without that."""
    root, removal, changed = found.root, found.removal, {}
    if lock := git.file_at(root, at, "dvc.lock"):
        changed["dvc.lock"] = versions.present_lock(lock, forgotten)
    file = versions.champion_file_at(root, at)
    champion = versions.with_present_weights(file.champion, forgotten)
    start = versions.with_present_weights(file.start, forgotten)
    if start and start.version in forgotten.versions:
        start = versions.start_after(root, start, forgotten)
    changed[CHAMPION] = as_json(ChampionFile(champion=champion, start=start).model_dump(mode="json"))
    ledger = parse_ledger(git.file_at(root, at, str(LEDGER)) or b"", str(LEDGER))
    drops = [present_drop(drop, removal, forgotten, found.drops) for drop in ledger]
    changed[str(LEDGER)] = as_json(as_document(drops))
    aliases = git.file_at(root, at, found.params.data.aliases)
    if aliases and set(parse_aliases(aliases, found.params.data.aliases)) & removal.labels:
        given = parse_json(aliases, found.params.data.aliases)
        kept = {label: meant for label, meant in given.items() if not removal.is_label(label)}
        changed[found.params.data.aliases] = as_json(kept)
    for name in git.git(root, "ls-tree", "-r", "-z", "--name-only", at, "metrics", CARD).split("\0"):
        if name:
            text = (git.file_at(root, at, name) or b"").decode(errors="surrogateescape")
            new = scrub_file(name, text, removal)
            for old in forgotten.weights:
                new = new.replace(old, newest(forgotten.weights, old))
            if name == CARD and champion:
                count = sum(champion.version in person.versions for person in forgotten.people)
                about = f", of whom {count} were forgotten since" if count else ""
                new = re.sub(r"(?m)^(\| people trained on \| \d+).* \|$", rf"\1{about} |", new)
            changed[name] = new.encode(errors="surrogateescape")
    return {name: data for name, data in changed.items() if data != git.file_at(root, at, name)}


def present_drop(drop: Drop, removal: Removal, forgotten: Forgotten, images: Sequence[DropImages]) -> Drop:
    """A drop's entry without the person: its corrected labels, its reason, the hash of its listing."""
    about = next((one for one in images if one.drop.id == drop.id), None)
    gone = about.paths if about and about.source and not obstacle(about) else ()
    labels = {
        path: removal.name if removal.is_label(person) else person
        for path, person in drop.labels.items()
        if path not in gone
    }
    drop = replace(drop, labels=labels, reason=scrub(drop.reason, removal))
    return present_listing(about, drop, forgotten, removal.name) if about else drop


# Step 4, and the order of all.


def forget(
    root: Path,
    person: str,
    reason: str = "",
    galleries: Sequence[str] = (),
    shared: bool = False,
    note: Note = lambda line: None,
) -> Result:
    """Forget a person, or go on with it; the caller holds the workspace's lock. Raises UserError."""
    root = root.resolve()
    branch = branches.main_branch(root)
    branches.check_clean(root, branch)
    check_idle(root, branch)
    newest_commit = branches.update_main(root, branch)
    work = root / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        found = plan(root, person, work)
        if found.removal.names.are_in(reason):
            raise UserError("--reason has the person's name in it, and Git would keep it; word it without")
        galleries = [*galleries, *places.galleries_in(root)]
        in_drops = any(not one.problem for one in found.drops)
        known = found.survey.found or found.person or in_drops
        if not (known or places.have_person(galleries, found.removal)):
            raise UserError(f"{person!r} is nobody in the data, the versions, the drops, or a gallery")
        forgotten = found.forgotten
        if found.survey.found or in_drops or not found.person:
            for line in plan_lines(found, shared):
                note(line)
            forgotten = record(found, prepare(found, note), reason)
            for line in commit(found, forgotten, newest_commit, branch):
                note(f"note: {line}")
        removal = replace(found.removal, images=forgotten.images_of(found.removal.name))
        remove(found, forgotten, removal, galleries, shared, note)
        shutil.rmtree(work)  # it may have copies of old files
        work.mkdir()
        return verify(root, found.params, removal, found.objects, found.survey.missing, galleries, note)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_idle(root: Path, branch: str) -> None:
    """Raise UserError if another branch is checked out, or a stage is at work: it would write the person's
    data again.
    """
    from filelock import FileLock, Timeout

    place = git.worktree_of(root, branch)
    if place is None or not place.samefile(root):
        raise UserError(f"{root}: another branch than {branch} is checked out; `git checkout {branch}` first")
    for path in (root / ".state").glob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            raise UserError(
                f"{path}: a stage is at work; wait for it to end, or stop it, then again"
            ) from None


def remove(
    found: Plan, forgotten: Forgotten, removal: Removal, galleries: Sequence[str], shared: bool, note: Note
) -> None:
    """Replace the workspace's files, and remove the old ones from every place; may be called again."""
    root, params, objects = found.root, found.params, found.objects
    had_champion = (root / "champion").exists()
    shows = Search(removal, sure=True).in_bytes
    for name in places.remove_work(root, shows):
        note(f"removed: {name}")
    # Before the tables, which say what files have the person's images: a command that is killed finds them.
    drops, _ = all_drops(root, params)
    in_drops = images_in_drops(drops, removal, found.survey.claimed, found.survey.copies)
    for line in clean_drops(in_drops, removal):
        note(line)
    count = places.replace_outputs(root, found.work, params, forgotten, removal, objects)
    note(f"the workspace: {count} files replaced or removed")
    for line in places.clean_galleries(galleries, forgotten, removal):
        note(line)
    for folder in (root / SHARDS, places.shard_cache(params)):
        note(f"{folder}: {places.remove_old_shards(folder, forgotten)} old shards removed")
    # First: it knows weights by these.
    unnamed = places.remove_unnamed(root, objects, forgotten, shows) if shared else 0
    removed, kept = places.remove_objects(root, objects, forgotten, shared)
    note(f"DVC: {unnamed + removed} old objects removed")
    for count, lines in (
        places.remove_from_store(params, forgotten, shared),
        places.remove_reports(params, removal, shared),
        places.remove_checkpoints(root, params, shared),
    ):
        removed, kept = removed + count, kept + lines
    for line in kept:
        note(f"left: {line}")
    if had_champion and (champion := read_champion(root).champion):
        versions.fetch_champion(root, champion.version, root / "champion")
        note(f"champion: fetched again, version {champion.version}")
