"""Object stores (`s3://`): the only place of the project that knows an S3 client.

Endpoint, region and keys come from the environment alone, as every AWS program reads them (AWS_ENDPOINT_URL,
AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE). An address with
a key in it is refused.
"""

from csdn.data.store.arrow import arrow_filesystem
from csdn.data.store.bucket import Store, StoredObject

__all__ = ["Store", "StoredObject", "arrow_filesystem"]
