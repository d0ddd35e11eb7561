"""An S3 server on loopback that checks keys and signatures, and can be away: for tests of object stores."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

BUCKET = "cameras"
REGION = "us-east-1"
DEADLINE = 60.0  # seconds until the server must listen
# Requests before keys are asked for: those that make the first user.
_SETUP = ("create_user", "create_access_key", "put_user_policy")
# What may come from the surroundings and would count instead of a test's own.
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION")


class S3Server:
    """A server with one user and the bucket BUCKET; `environment` is what a program needs to use it."""

    def __init__(self, log: Path) -> None:
        self.log, self.endpoint = log, f"http://127.0.0.1:{_free_port()}"
        self.start()
        nobody = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        self.key = self._user(nobody, "trainer", "*")
        self.bucket = boto3.resource("s3", **self._options(self.key)).Bucket(BUCKET)
        self.bucket.create()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            **self.key,
        }

    def user_that_may(self, *actions: str) -> dict[str, str]:
        """The key of a new user with the right to these actions, such as s3:GetObject, as environment."""
        return self._user(self.key, secrets.token_hex(4), *actions)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(found.key for found in self.bucket.objects.filter(Prefix=prefix))

    def requests(self, method: str, part: str) -> int:
        """How many requests of a method ("": of any) have had `part` in their URL, by the server's log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return sum(f'"{method}' in line and part in line for line in lines)

    def pause(self) -> None:
        """Keep connections open and answer nothing, until `resume`."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Be silent for so long, from the beginning of the block on."""
        self.pause()
        back = threading.Timer(seconds, self.resume)
        back.start()
        try:
            yield
        finally:
            back.cancel()
            self.resume()

    def stop(self) -> None:
        """End the server: its port then refuses."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start the server, empty, at its endpoint; returns when it listens."""
        program = Path(sys.executable).with_name("moto_server")
        host, port = self.endpoint.removeprefix("http://").split(":")
        environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(len(_SETUP))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "-H", host, "-p", port], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        began = time.monotonic()
        while self.process.poll() is None and time.monotonic() - began < DEADLINE:
            try:
                socket.create_connection((host, int(port))).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"moto_server did not start: {self.log.read_text()}")

    def _user(self, key: dict[str, str], name: str, *actions: str) -> dict[str, str]:
        """The key of a new user, whom the user of `key` makes, as environment."""
        iam = boto3.client("iam", **self._options(key))
        rules = [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]
        iam.create_user(UserName=name)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        policy = json.dumps({"Version": "2012-10-17", "Statement": rules})
        iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
        return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}

    def _options(self, key: dict[str, str]) -> dict[str, str]:
        """What boto3 takes to speak to the server."""
        own = {name.lower(): value for name, value in key.items()}
        return {"endpoint_url": self.endpoint, "region_name": REGION, **own}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def s3_environment(server: S3Server) -> Iterator[pytest.MonkeyPatch]:
    """This process's environment names the server, and nothing else."""
    with pytest.MonkeyPatch.context() as environment:
        for name in FOREIGN:
            environment.delenv(name, raising=False)
        for name, value in server.environment.items():
            environment.setenv(name, value)
        empty = server.log.with_name("empty")
        empty.touch()
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            environment.setenv(name, str(empty))
        environment.setenv("XDG_CACHE_HOME", str(server.log.with_name("cache")))
        yield environment
