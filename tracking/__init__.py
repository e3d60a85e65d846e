"""Where runs are kept: MLflow's store, Lightning's logger on it, and a buffer for what the store does not take.

To import this package sets MLflow's environment, which MLflow reads while it is imported: so this file imports none of
the others, and `experiment` imports it before anything else.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# a command prints its own link, and a table is made of many files
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# 7, the default, takes minutes to report that a server is down; timeouts are in seconds
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "12")
os.environ.setdefault("PGCONNECT_TIMEOUT", "12")
# Optuna compares signs of life of all machines, in the zone of each one's connection
os.environ["PGTZ"] = "UTC"
# a connection that is kept open would write into a file that was deleted, or wait for a database that does not answer
os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
