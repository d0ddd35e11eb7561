"""Reading a byte range without most of the work that botocore's client does for it.

A feed reads thousands of images a second. The request has the client's URL, signature, time limits and way of
connecting; what the client asks itself at each request of any kind is left out. An answer that is not the
range is the client's to explain.
"""

from __future__ import annotations

from functools import lru_cache

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.client import BaseClient
from botocore.httpsession import URLLib3Session
from botocore.session import Session
from botocore.utils import get_environ_proxies

_PARTIAL_CONTENT = 206


class RangeRequests:
    """GET requests for ranges of a bucket's objects; threads may share it, processes may not."""

    def __init__(self, session: Session, client: BaseClient, bucket: str, connections: int) -> None:
        config, endpoint = client.meta.config, client.meta.endpoint_url
        self.client, self.bucket = client, bucket
        self.credentials = session.get_credentials()
        region = client.meta.region_name
        self.region = "us-east-1" if region == "aws-global" else region
        self.http = URLLib3Session(
            verify=session.get_config_variable("ca_bundle") or True,
            proxies=get_environ_proxies(endpoint),
            timeout=(config.connect_timeout, config.read_timeout),
            max_pool_connections=connections,
        )
        self._url = lru_cache(maxsize=4096)(self._made_url)

    def read(self, key: str, offset: int, size: int) -> bytes | None:
        """Up to `size` bytes from `offset` on; None where the store answers anything else.

        Raises botocore's errors where it does not answer.
        """
        if self.credentials is None:
            return None
        about = {"Range": f"bytes={offset}-{offset + size - 1}"}
        request = AWSRequest("GET", self._url(key), headers=about)
        S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        answer = self.http.send(request.prepare())
        return answer.content if answer.status_code == _PARTIAL_CONTENT else None

    def _made_url(self, key: str) -> str:
        """The object's URL as the client addresses it; a signed one is made without a request."""
        wanted = {"Bucket": self.bucket, "Key": key}
        return self.client.generate_presigned_url("get_object", Params=wanted).partition("?")[0]
