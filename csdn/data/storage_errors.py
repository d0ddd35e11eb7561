"""What an error of an object store means, whether the request may succeed later, and what the user can do.

The clients of all stores raise errors of their own: botocore's (through s3fs, as the cause of an OSError),
aiohttp's, gcsfs's and Azure's. csdn.data.storage asks here, and repeats the request or raises a UserError.
"""

from __future__ import annotations

import aiohttp
from botocore import exceptions
from botocore.parsers import ResponseParserError

_NO_KEYS = "there is no key for it in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_OLD_TOKEN = "the session's token is not valid, or not any more; get new keys (AWS_SESSION_TOKEN)"
_OTHER_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION to its region"
_DENIED = "this key may not do that; give it the right, or use another key (AWS_ACCESS_KEY_ID)"
_MEANINGS = {
    "InvalidAccessKeyId": "the store does not know this key; correct AWS_ACCESS_KEY_ID, or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret is not that of this key; correct AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "there is no such bucket; correct the address, or make the bucket",
    "AccessDenied": _DENIED,
    "ExpiredToken": _OLD_TOKEN,
    "InvalidToken": _OLD_TOKEN,
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "InvalidBucketName": "this cannot be a bucket's name; correct the address",
    # The response to HEAD has no body that could name the error, only its status.
    "301": _OTHER_REGION,
    "403": _DENIED,
}
_BUSY = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Throttling", "TooManyRequests"}
_ALTERED = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}  # on the way to the store
_CONNECTION_ERRORS = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    exceptions.ResponseStreamingError,
    ResponseParserError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    ConnectionError,
    TimeoutError,
)
# What s3fs lets through as it is.
INVALID_SETTINGS = (exceptions.BotoCoreError, ValueError)  # such as an invalid endpoint URL
WRONG_CHECKSUM = exceptions.FlexibleChecksumError
_PERMANENT = (exceptions.SSLError, exceptions.InvalidProxiesConfigError)
# Errors of a connection of the optional libraries, by their names.
_OF_CONNECTION = {
    *("azure.ServiceRequestError", "azure.ServiceResponseError"),
    *("requests.ConnectionError", "requests.Timeout", "requests.ProxyError", "requests.ChunkedEncodingError"),
    *("google.TransportError", "google.RefreshError", "gcsfs.ChecksumError"),
}
_CLIENTS = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests"}


def is_of_store(error: BaseException) -> bool:
    """Whether the error is one of a request, not a mistake of this program."""
    if isinstance(error, OSError) or _root(type(error).__module__) in _CLIENTS:
        return True
    # gcsfs and adlfs raise Python's own errors for refused requests and missing settings.
    return isinstance(error, (RuntimeError, ValueError)) and _raised_in(error) in ("adlfs", "gcsfs")


def _raised_in(error: BaseException) -> str:
    """The package whose code raised the error."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return _root(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""


def _root(module: str) -> str:
    return module.partition(".")[0]


def code_of(error: BaseException) -> str:
    """The store's code of an error, such as NoSuchKey, or its HTTP status; "" where it sent none."""
    for one in (error, error.__cause__):
        if isinstance(one, exceptions.ClientError):
            return one.response.get("Error", {}).get("Code", "")
    status = _status(error)
    return str(status) if status else ""


def is_missing(error: BaseException) -> bool:
    """Whether the error says that an object is not there, and not that its bucket is not."""
    return (isinstance(error, FileNotFoundError) and code_of(error) != "NoSuchBucket") or code_of(error) in (
        "NoSuchKey",
        "404",
    )


def can_recover(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if code := code_of(error):
        status = _status(error)
        return status >= 500 or status in (408, 429) or code in _BUSY | _ALTERED
    return _is_of_connection(error)


def explained(error: BaseException, where: str, endpoint: str, tried: float) -> str:
    """What is wrong and what to do.

    where: the address of the object; endpoint: URL of the store; tried: seconds of repeated requests.
    """
    code, on_s3 = code_of(error), where.startswith("s3://")
    if on_s3 and code in _MEANINGS:
        return _MEANINGS[code]
    if code in ("401", "403") or (not on_s3 and str(error).startswith("Forbidden")):
        return f"these credentials may not do that; give them the right, or use others ({_message(error)})"
    if code:
        return f"the store refuses: {_message(error) or code}"
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return _NO_KEYS
    if _is_of_connection(error):
        right = "AWS_ENDPOINT_URL right" if on_s3 else "the network there"
        return (
            f"{endpoint} does not respond ({_reason(error)}; tried for {tried:.0f} s); is {right}, and the "
            "store up?"
        )
    return str(error) or type(error).__name__


def _status(error: BaseException) -> int:
    """The HTTP status of a response, as each client has it; 0 where there was no response."""
    for one in (error, error.__cause__):
        if isinstance(one, exceptions.ClientError):
            return one.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if status is None and type(error).__module__.startswith("gcsfs"):
        status = getattr(error, "code", None)
    return status if isinstance(status, int) else 0


def _message(error: BaseException) -> str:
    for one in (error, error.__cause__):
        if isinstance(one, exceptions.ClientError):
            return one.response.get("Error", {}).get("Message", "")
    return str(error)


def _is_of_connection(error: BaseException) -> bool:
    kinds = {f"{_root(kind.__module__)}.{kind.__name__}" for kind in type(error).__mro__}
    if isinstance(error, _PERMANENT) or "requests.SSLError" in kinds:
        return False
    return isinstance(error, _CONNECTION_ERRORS) or bool(kinds & _OF_CONNECTION)


def _reason(error: BaseException) -> str:
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError, TimeoutError)):
        return "timed out"
    if isinstance(error, (exceptions.EndpointConnectionError, aiohttp.ClientConnectorError)):
        return "no connection"
    return "connection lost"
