"""Commands and links that show a run or a comparison in MLflow's UI."""

from pathlib import Path
from urllib.parse import quote

from tracking.store import OWN_URI, ROOT, hidden, tracking_uri

# not the UI's view for agents
VIEW = "workflowType=machine_learning"


def how_to_see(experiment_id: str, run_id: str) -> str:
    """Return the command and the link that show the run in MLflow's UI."""
    return _command(f"#/experiments/{experiment_id}/runs/{run_id}?{VIEW}")


def how_to_compare(experiment_id: str, parent: str) -> str:
    """Return the command and the link that show the charts of the runs of a comparison, side by side."""
    own = quote(f"tags.mlflow.parentRunId = '{parent}'", safe="")
    # sorted by date, the UI would collapse the runs of a comparison
    best_first = f"orderByKey={quote('metrics.`test/loss`', safe='')}&orderByAsc=true"
    return _command(f"#/experiments/{experiment_id}/runs?{VIEW}&compareRunsMode=CHART&{best_first}&searchFilter={own}")


def _command(page: str) -> str:
    uri = tracking_uri()
    if uri.startswith("http"):
        return f"{hidden(uri)}/{page}"
    command = 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
    if uri == OWN_URI:
        command = "mlflow ui" if Path.cwd() == ROOT else f"(cd '{ROOT}' && mlflow ui)"
    return f"{command}   and open http://127.0.0.1:5000/{page}"
