"""Requests to an object store: repeated while it is away, and errors that say what to do."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from csdn.errors import Away, UserError

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
# Seconds for which a request is repeated. A store that never answered has most likely a wrong address; one
# that did answer is away, and comes back.
FIRST_PATIENCE = 3.0
PATIENCE = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 4.0

T = TypeVar("T")

_NO_KEYS = "there is no key for it in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_OLD_TOKEN = "the session's token is not valid, or not any more; get new keys (AWS_SESSION_TOKEN)"
_OTHER_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION to its region"
_MEANINGS = {
    "InvalidAccessKeyId": "the store does not know this key; correct AWS_ACCESS_KEY_ID, or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret is not that of this key; correct AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "there is no such bucket; correct the address, or make the bucket",
    "AccessDenied": "this key may not do that; give it the right, or use another key (AWS_ACCESS_KEY_ID)",
    "ExpiredToken": _OLD_TOKEN,
    "InvalidToken": _OLD_TOKEN,
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "InvalidBucketName": "this cannot be a bucket's name; correct the address",
}
# HEAD has no body to name the error in.
_OF_STATUS = {"301": "PermanentRedirect", "403": "AccessDenied"}
_BUSY = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Throttling", "TooManyRequests"}
_UNREACHED = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    exceptions.ResponseStreamingError,
)
_FOR_GOOD = (exceptions.SSLError, exceptions.InvalidProxiesConfigError)


def ask(request: Callable[[], T], where: str, endpoint: str, patience: float) -> T:
    """The request's answer, asked for again with back-off for `patience` seconds while the store is away.

    where: the address that an error names; endpoint: whom it names as silent. Raises UserError, Away
    where only patience ended; of a missing object, FileNotFoundError. The client's own error, whose text may
    have the endpoint's query, is no cause of theirs: it would stand in the traceback of a log.
    """
    began, wait = time.monotonic(), _FIRST_WAIT
    while True:
        try:
            return request()
        except (BotoCoreError, ClientError) as error:
            if code_of(error) in ("NoSuchKey", "404"):
                raise FileNotFoundError(where) from None
            tried = time.monotonic() - began
            if not _is_away(error):
                raise UserError(f"{where}: {_explained(error, endpoint, tried)}") from None
            if tried + wait > patience:
                raise Away(f"{where}: {_explained(error, endpoint, tried)}") from None
        # A random part keeps the processes of a run from all coming back at once.
        time.sleep(wait * random.SystemRandom().uniform(0.5, 1))
        wait = min(2 * wait, _LONGEST_WAIT)


def code_of(error: Exception) -> str:
    """The store's name of an error, such as NoSuchKey, or its HTTP status; empty where it sent none."""
    return error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""


def _is_away(error: Exception) -> bool:
    """Whether the same request may have an answer a little later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or code_of(error) in _BUSY
    return isinstance(error, _UNREACHED) and not isinstance(error, _FOR_GOOD)


def _explained(error: Exception, endpoint: str, tried: float) -> str:
    code = code_of(error)
    meaning = _MEANINGS.get(_OF_STATUS.get(code, code))
    if meaning:
        return meaning
    if isinstance(error, ClientError):
        return f"the store refuses: {error.response.get('Error', {}).get('Message') or code}"
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return _NO_KEYS
    if isinstance(error, _UNREACHED) and not isinstance(error, _FOR_GOOD):
        return (
            f"{endpoint} does not answer ({_reason(error)}; tried for {tried:.0f} s); is AWS_ENDPOINT_URL "
            "right, and the store up?"
        )
    return str(error)


def _reason(error: Exception) -> str:
    if isinstance(error, exceptions.EndpointConnectionError):
        return "no connection"
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError)):
        return "timed out"
    return "connection lost"
