"""Ray: Ray Data executes the same plan, Ray Train runs the same loop. Only this package imports ray."""

import os

# Here, because Ray reads them when it is imported.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",  # a lower level logs every data set
}.items():
    os.environ.setdefault(_name, _value)
