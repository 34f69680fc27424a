"""MLflow as a view of a study: written from the run folders, rebuilt from them at any time."""

import os

# Read when mlflow is first imported, by whichever module of this folder.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
