"""A user's Git and DVC configuration in which each setting that could matter has the worst value."""

from __future__ import annotations

from pathlib import Path

import pytest

GITCONFIG = """
[user]
    name = A User
    email = user@example.com
    signingKey = 0000000000000000
    useConfigOnly = true
[init]
    defaultBranch = trunk
[core]
    autocrlf = true
    safecrlf = true
    eol = crlf
    quotePath = true
    pager = false
    editor = false
    hooksPath = {hooks}
    fsmonitor = {hooks}/fsmonitor
    commentChar = C
    abbrev = 4
    logAllRefUpdates = false
[commit]
    gpgSign = true
    cleanup = strip
    template = {hooks}/no-such-file
    verbose = true
[tag]
    gpgSign = true
    forceSignAnnotated = true
    sort = -creatordate
[gpg]
    program = false
[log]
    showSignature = true
    follow = true
    decorate = full
    date = relative
    diffMerges = separate
[format]
    pretty = fuller
    notes = true
[i18n]
    commitEncoding = ISO-8859-1
    logOutputEncoding = ISO-8859-1
[grep]
    patternType = fixed
[trailer]
    separators = "="
[color]
    ui = always
[column]
    ui = always
[fetch]
    prune = true
    pruneTags = true
    recurseSubmodules = true
    all = true
[remote "origin"]
    prune = true
    pruneTags = true
    tagOpt = --tags
    mirror = true
[remote]
    pushDefault = elsewhere
[push]
    default = nothing
    followTags = true
    gpgSign = true
    recurseSubmodules = only
    pushOption = review
    autoSetupRemote = true
[pull]
    rebase = true
[merge]
    ff = only
    verifySignatures = true
    log = true
    autoStash = true
    conflictStyle = diff3
[branch]
    autoSetupMerge = always
    autoSetupRebase = always
[branch "main"]
    mergeOptions = --no-ff --squash --log
[rerere]
    enabled = true
    autoUpdate = true
[diff]
    external = false
    noprefix = true
    orderFile = {hooks}/no-such-file
    renames = copies
    ignoreSubmodules = none
[status]
    short = true
    branch = true
    showStash = true
    showUntrackedFiles = all
[submodule]
    recurse = true
[checkout]
    defaultRemote = elsewhere
    guess = false
[worktree]
    useRelativePaths = true
    guessRemote = true
[gc]
    auto = 1
    pruneExpire = now
    worktreePruneExpire = now
[maintenance]
    auto = true
[advice]
    detachedHead = true
[alias]
    rev-list = !false
    status = !false
    ci = commit --signoff
"""
DVC_CONFIG = """
[core]
    interactive = true
    autostage = true
    no_scm = true
    check_update = true
[hydra]
    enabled = true
[exp]
    auto_push = true
"""


def use_hostile_settings(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Make `home` this process's, with such settings of Git and of DVC, and hooks that refuse everything."""
    hooks = home / "hooks"
    hooks.mkdir(parents=True)
    for name in (
        "pre-commit",
        "commit-msg",
        "post-checkout",
        "pre-push",
        "reference-transaction",
        "fsmonitor",
    ):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    (home / ".gitconfig").write_text(GITCONFIG.format(hooks=hooks))
    (home / "dvc").mkdir()
    (home / "dvc/config").write_text(DVC_CONFIG)
    patch.setenv("HOME", str(home))
    patch.setenv("DVC_GLOBAL_CONFIG_DIR", str(home / "dvc"))
    patch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    patch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in ("PAGER", "GIT_PAGER", "DVC_PAGER", "GIT_EDITOR", "EDITOR"):
        patch.setenv(name, "false")
