"""Commands and links that show a run or a comparison in MLflow's UI."""

import json
from collections.abc import Sequence
from pathlib import Path

from tracking.store import OWN_URI, ROOT, client, hidden, tracking_uri

# not the UI's view for agents
VIEW = "workflowType=machine_learning"


def how_to_see(experiment_id: str, run_id: str, tab: str = "") -> str:
    """Return the command and the link that show the run, or a tab of it, in MLflow's UI."""
    return _command(f"#/experiments/{experiment_id}/runs/{run_id}{tab}?{VIEW}")


def how_to_compare(experiment_id: str, parent: str) -> str:
    """Return the command and the link that show the charts of a comparison, as `save_view` arranged them."""
    return _command(f"#/experiments/{experiment_id}/runs?{VIEW}&compareRunsMode=CHART&viewStateShareKey={parent}")


def save_view(experiment_id: str, parent: str, runs: Sequence[str]) -> None:
    """Arrange the charts of a comparison: all runs, grouped by arm; first curves, then single values.

    A link cannot hold this, so it is a tag of the experiment, as made by *Share view* in MLflow's UI. By default, the
    UI shows ten runs, and the test metrics first.

    runs: their ids, listed because reused runs have another parent. The UI loads 100 at once.
    """
    # metric -> section and type; the UI adds a chart for each other metric
    charts = {"val/loss": ("curves", "LINE"), "lr": ("curves", "LINE"), "test/loss": ("test", "BAR")}
    view = {
        "searchFilter": "attributes.run_id IN ('{}')".format("', '".join(runs[:100])),
        "orderByKey": "metrics.`test/loss`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "optimizer"}]},
        # a line per run, not per group
        "useGroupedValuesInCharts": False,
        "compareRunCharts": [
            {
                "uuid": metric,
                "metricKey": metric,
                "metricSectionId": section,
                "type": kind,
                "scaleType": "log" if metric == "lr" else "linear",
                "useGlobalLineSmoothing": True,
            }
            for metric, (section, kind) in charts.items()
        ],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "columns": 2}
            for name in ("curves", "train", "val", "test", "Model metrics")
        ],
        # keeps the order of the sections
        "isAccordionReordered": True,
    }
    client().set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{parent}", json.dumps(view))


def _command(page: str) -> str:
    uri = tracking_uri()
    if uri.startswith("http"):
        return f"{hidden(uri)}/{page}"
    command = 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
    if uri == OWN_URI:
        command = "mlflow ui" if Path.cwd() == ROOT else f"(cd '{ROOT}' && mlflow ui)"
    return f"{command}   and open http://127.0.0.1:5000/{page}"
