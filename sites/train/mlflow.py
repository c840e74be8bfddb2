"""A training as MLflow shows it: its loss and its speed, on this machine only.

MLflow's files hold these, four public parameters and the name of the run. Its usual functions would
add the user, the program and the commit; its client, which is used here, adds nothing.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any, NamedTuple, cast

from ddm_fed.errors import DdmFedError, OptionError, StateError, printable
from ddm_fed.progress import StepReport, Watch
from sites.train.shown import require_private, scalars_of, shown_by

# MLflow reads them when it is imported and at every call. Whatever the user set: nothing is sent.
# Since version 3.13 it refuses files without the last; a database would need two more packages.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
EXPERIMENT = "ddm-fed"
NO_ARTIFACTS = "mlflow-artifacts:/"  # else MLflow writes down where the folder is; none are written
TRASH = ".trash"  # in every folder of files of MLflow


def require_mlflow(folder: Path, site: Path, tensorboard: Path | None = None) -> None:
    """Refuses a folder that is no private one of this machine, and says what is not installed.

    Args:
        folder: Where a training is to be shown.
        site: The site's folder.
        tensorboard: Where TensorBoard shows it.

    Raises:
        OptionError: it is an address, lies in the outbox, is a file, or holds other things, which
            MLflow would take for damaged experiments.
        StateError: MLflow is not installed.
    """
    require_private("--mlflow", folder, site)
    if tensorboard is not None and tensorboard.resolve().is_relative_to(folder.resolve()):
        raise OptionError(
            f"--mlflow {folder}: the folder of --tensorboard, {tensorboard}, lies in it",
            hint="give each a folder of its own",
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TRASH).is_dir():
        raise OptionError(
            f"--mlflow {folder}: what lies there is not from MLflow",
            hint="give a new folder, or one that --mlflow was given before",
        )
    _library()


@contextmanager
def shown_in_mlflow(
    folder: Path, name: str, parameters: Mapping[str, object], watch: Watch
) -> Iterator[Watch]:
    """Yields a watch that tells `watch`, and writes into a folder that only its owner may enter.

    A run that goes on from a checkpoint is the same run in MLflow. Steps that it took before and
    takes again are shown once.

    Args:
        folder: Of MLflow's files.
        name: Of the run.
        parameters: Of the run, by name; public ones only.
        watch: Told as well.
    """
    with _in_our_words():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with shown_by(_Run(folder, name, parameters), watch) as shown:
        yield shown


class _Run:
    """Writes one run, which is looked up at its first step: that says whether it goes on."""

    def __init__(self, folder: Path, name: str, parameters: Mapping[str, object]) -> None:
        self._folder, self._name, self._parameters = folder, name, parameters
        self._client, self._run_id = cast("Any", None), ""
        self._written, self._finished = 0, False

    def write(self, report: StepReport) -> None:
        with _in_our_words():
            if self._client is None:
                self._open(report.step)
            if report.step > self._written:  # else MLflow would show the step twice
                now_ms = int(time() * 1000)
                metrics = [
                    _library().Metric(name, value, now_ms, report.step)
                    for name, value in scalars_of(report).items()
                ]
                self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)
        self._finished = report.step == report.steps

    def close(self) -> None:
        if self._run_id:
            with _in_our_words():
                status = "FINISHED" if self._finished else "KILLED"
                self._client.set_terminated(self._run_id, status)

    def _open(self, first_step: int) -> None:
        uri = self._folder.resolve().as_uri()
        self._client = client = _library().MlflowClient(tracking_uri=uri, registry_uri=uri)
        if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
            key = experiment.experiment_id
        else:
            key = client.create_experiment(EXPERIMENT, artifact_location=NO_ARTIFACTS)
        # of one that is there already, too: MLflow's own programs leave it open to everybody
        (self._folder / key).chmod(0o700)
        newest = "attributes.start_time DESC"
        named = f"attributes.run_name = '{self._name}'"
        for run in client.search_runs([key], named, max_results=1, order_by=[newest]):
            if first_step > 1:
                self._run_id = run.info.run_id
                losses = client.get_metric_history(self._run_id, "loss")
                self._written = max((loss.step for loss in losses), default=0)
                client.update_run(self._run_id, status="RUNNING")
                return
            if run.info.status == "RUNNING":  # killed, and nothing of it goes on
                client.set_terminated(run.info.run_id, "KILLED")
        self._run_id = client.create_run(key, run_name=self._name).info.run_id
        for name, value in self._parameters.items():
            client.log_param(self._run_id, name, value, synchronous=True)


class _Library(NamedTuple):
    MlflowClient: Any
    Metric: Any


def _library() -> _Library:
    os.environ.update(ENVIRONMENT)
    try:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise StateError(
            f"MLflow cannot be imported ({error}), and --mlflow needs it",
            hint="pip install 'ddm-fed[mlflow]'",
        ) from None
    return _Library(MlflowClient, Metric)


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Raises what MLflow refuses, such as a step of a run that was deleted in its window.

    Its files raise bare exceptions where a folder is gone, and what the operating system raises
    where a disk is full.
    """
    try:
        yield
    except DdmFedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever its files raise
        raise StateError(
            f"MLflow does not take the training: {printable(str(error))}",
            hint="run the same command again with another folder for --mlflow: the training goes "
            "on from its checkpoint",
        ) from None
