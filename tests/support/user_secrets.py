"""What a user's environment and own files hold, and nothing that a run writes may ever show."""

from __future__ import annotations

import base64
from pathlib import Path

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAHUSH7HUSH7HUSH7H",
    "AWS_SECRET_ACCESS_KEY": "hushSecretAccessKey/7+hush",
    "AWS_SESSION_TOKEN": "hushSessionToken==7hush",
    "PREFECT_API_KEY": "pnu_hushPrefectKey7",
    "RAY_AUTH_TOKEN": "hushRayToken7hushRayToken7",
    "HF_TOKEN": "hf_hushHuggingFace7",
    "DATABASE_URL": "postgresql://ana:hushDatabase7@db/prod",
}
REMOTE_KEY = "hushRemoteKey7hush"


def add_secret_files(folder: Path) -> None:
    """The key of a DVC remote, where `dvc remote modify --local` writes it."""
    config = f"['remote \"store\"']\n    url = s3://bucket/dvc\n    secret_access_key = {REMOTE_KEY}\n"
    (folder / ".dvc/config.local").write_text(config)


def needles() -> list[bytes]:
    """The secrets as they would be found: as they are, and in base64 at any of its three offsets."""
    found = []
    for secret in (*SECRETS.values(), REMOTE_KEY):
        raw = secret.encode()
        found.append(raw)
        for offset in range(3):
            coded = base64.b64encode(bytes(offset) + raw)
            found.append(coded[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6])
    return found
