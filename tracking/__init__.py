"""Where runs are kept: MLflow's store, Lightning's logger on it, and what the store missed.

To import this package sets MLflow's environment, which it reads while it is imported: so this file imports nothing of
the others, and `experiment` imports it before anything else.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # each run's; a command prints its own
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each file that a table is made of
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # 7, the default, takes minutes to say that it is down
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "12")  # seconds
os.environ.setdefault("PGCONNECT_TIMEOUT", "12")
if os.environ.get("MLFLOW_TRACKING_URI", "sqlite").startswith("sqlite"):
    # opened anew each time: a connection that is kept would go on writing into a file that was deleted
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
