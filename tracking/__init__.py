"""Store runs in MLflow: the store, Lightning's logger, and a buffer for the time in which the store is unreachable.

Importing this package sets MLflow's environment variables. MLflow reads them when it is imported, so `experiment`
imports this package first, and this file imports none of its modules.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# commands print their own links; a table needs many files, each of which would have a progress bar
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# with the default of 7, it takes minutes until an unreachable server is reported; timeouts are in seconds
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "12")
os.environ.setdefault("PGCONNECT_TIMEOUT", "12")
# Optuna compares the heartbeats of all machines, each in the time zone of its connection
os.environ["PGTZ"] = "UTC"
# a pooled connection would write to a deleted file, or wait for a database that does not answer
os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
