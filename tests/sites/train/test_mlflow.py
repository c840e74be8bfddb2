"""`ddm-site train --mlflow`: what is written, where, and that none of it goes anywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from federation import create_federation

import sites.cli.train
from ddm_fed.errors import OptionError, StateError
from ddm_fed.progress import QUIET, StepReport
from sites.train.mlflow import ENVIRONMENT, require_mlflow, shown_in_mlflow

ADDRESSES = ("http://127.0.0.1:5000", "https://mlflow.example", "sqlite:///runs.db")
ADDRESSES += ("postgresql://user@host/runs", "databricks://profile", "file:///tmp/runs")
METRICS = {"metrics/loss", "metrics/images per second"}


@pytest.fixture
def environment(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "false")  # as somebody may have it; undone after the test


def runs_of(folder):
    """Returns the client of a folder and the runs in it, oldest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    ids = [found.experiment_id for found in client.search_experiments()]
    return client, client.search_runs(ids, order_by=["attributes.start_time ASC"])


def told_by(client, run, name):
    history = client.get_metric_history(run.info.run_id, name)
    return [(metric.step, metric.value) for metric in history]


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_interrupted_training_goes_on_in_one_run_and_beside_it_in_tensorboard(
    run, scratch, monkeypatch
):
    pytest.importorskip("mlflow")
    fed = create_federation(scratch, sites=("hospital-a",))
    site, folder, board = fed.path / "hospital-a", scratch / "ml flow%20", scratch / "board"
    words = ("train", "--plan", fed.published, "--data", "digits:0-4", "--site", site)
    words += ("--mlflow", folder, "--tensorboard", board, "--precision", "float32")
    words += ("--checkpoint-every", 0, "--sample-every", 1)

    def interrupt(estimate, report):
        if report.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sites.cli.train._Estimate, "after", interrupt)
    assert "interrupted" in run("ddm-site", *words).err
    client, (found,) = runs_of(folder)
    assert found.info.status == "KILLED"
    monkeypatch.setattr(sites.cli.train._Estimate, "after", lambda estimate, report: None)
    done = run("ddm-site", *words)
    assert done.code == 0, done.err

    client, (found,) = runs_of(folder)
    sha256 = fed.trust.plan_sha256
    assert found.info.status == "FINISHED"
    assert found.info.user_id == "unknown"
    assert found.data.tags == {"mlflow.runName": f"hospital-a-{sha256[:16]}"}
    assert found.data.params == {
        "plan": sha256,
        "architecture": "DiT-Nano/2",
        "steps": "3",
        "batch size": "16",
    }
    shown = {name: told_by(client, found, name) for name in ("loss", "images per second")}
    assert all([step for step, _ in told] == [1, 2, 3] for told in shown.values())

    experiment = folder / found.info.experiment_id
    assert folder.stat().st_mode & 0o777 == experiment.stat().st_mode & 0o777 == 0o700
    written = {path for path in folder.rglob("*") if path.is_file()}
    ours = experiment / found.info.run_id
    parameters = {f"params/{name}" for name in found.data.params}
    names = {"meta.yaml", "tags/mlflow.runName"} | METRICS | parameters
    assert written == {experiment / "meta.yaml", *(ours / name for name in names)}
    assert not [path for path in written if str(scratch) in path.read_text()]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = board.iterdir()
    beside = EventAccumulator(str(events)).Reload()
    for name, told in shown.items():
        seen = [(event.step, event.value) for event in beside.Scalars(name)]
        assert seen == [(step, pytest.approx(value, rel=1e-6)) for step, value in told]


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_steps_taken_again_are_shown_once_and_a_new_training_is_a_new_run(tmp_path):
    pytest.importorskip("mlflow")

    def take(steps, loss, name="hospital-a"):
        with shown_in_mlflow(tmp_path / "runs", name, {"steps": 7}, QUIET) as watch:
            for step in steps:
                watch.on_step(StepReport(step, 7, loss))

    take(range(1, 6), 1.0)
    take(range(1, 3), 5.0, "hospital-b")
    take(range(4, 8), 2.0)  # from a checkpoint of step 3
    take(range(1, 3), 3.0)  # --restart
    client, found = runs_of(tmp_path / "runs")
    assert [(each.info.run_name, each.info.status) for each in found] == [
        ("hospital-a", "FINISHED"),
        ("hospital-b", "KILLED"),
        ("hospital-a", "KILLED"),
    ]
    first, _, last = (told_by(client, each, "loss") for each in found)
    assert first == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2)]
    assert last == [(1, 3), (2, 3)]

    client.delete_run(found[-1].info.run_id)  # as a person may in MLflow's window
    client.delete_experiment(found[0].info.experiment_id)
    with pytest.raises(StateError, match="MLflow does not take the training"):
        take([3], 3.0)


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_experiment_that_others_could_read_is_closed_to_them(tmp_path):
    pytest.importorskip("mlflow")
    for _ in range(2):
        with shown_in_mlflow(tmp_path / "runs", "hospital-a", {}, QUIET) as watch:
            watch.on_step(StepReport(1, 1, 0.5))
        _, found = runs_of(tmp_path / "runs")
        experiment = tmp_path / "runs" / found[0].info.experiment_id
        assert experiment.stat().st_mode & 0o777 == 0o700
        experiment.chmod(0o755)  # as MLflow's own programs make it


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_what_ended_a_training_is_said_and_not_that_its_folder_is_gone(tmp_path):
    pytest.importorskip("mlflow")

    def show(ending):
        with shown_in_mlflow(tmp_path / "runs", "hospital-a", {}, QUIET) as watch:
            watch.on_step(StepReport(1, 3, 0.5))
            shutil.rmtree(tmp_path / "runs")
            ending(watch)

    def interrupt(watch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show(interrupt)
    for ending in (lambda watch: watch.on_step(StepReport(2, 3, 0.5)), lambda watch: None):
        with pytest.raises(StateError, match="MLflow does not take the training"):
            show(ending)


@pytest.mark.usefixtures("environment")
def test_folder_that_cannot_be_made_is_said_with_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StateError, match="MLflow does not take the training"),
        shown_in_mlflow(tmp_path / "file" / "runs", "hospital-a", {}, QUIET),
    ):
        pass


# Without what tells MLflow that it is being tested: it would be silent by itself.
_WATCHED = """
import sys
from pathlib import Path
from ddm_fed.progress import QUIET, StepReport
from sites.train.mlflow import require_mlflow, shown_in_mlflow

called = []

def watch_calls(event, arguments):
    if event in {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}:
        called.append((event, arguments))
        raise OSError("there is no network")

sys.addaudithook(watch_calls)
folder = Path(sys.argv[1])
require_mlflow(folder, Path("site"))
with shown_in_mlflow(folder, "hospital-a", {"steps": 1}, QUIET) as watch:
    watch.on_step(StepReport(1, 1, 0.5))
import threading
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
assert called == [], called
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
assert not Path("home").exists(), list(Path("home").rglob("*"))
"""


@pytest.mark.slow
def test_nothing_is_called_even_if_the_environment_names_servers_and_wants_telemetry(tmp_path):
    pytest.importorskip("mlflow")
    hostile = {
        **dict.fromkeys(ENVIRONMENT, "false"),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_REGISTRY_URI": "http://127.0.0.1:9",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    }
    kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    kept["PYTHONPATH"] = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(tmp_path / "runs")],
        env=kept | hostile,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("place", ADDRESSES)
def test_address_is_refused_before_anything_is_opened(run, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    words = ("--plan", tmp_path, "--data", "digits", "--site", tmp_path, "--mlflow", place)
    done = run("ddm-site", "train", *words)
    assert done.code == 2
    assert "--mlflow" in done.err
    assert "private" in done.err
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_of_other_things_and_folder_in_the_outbox_are_refused(tmp_path):
    for folder, reason in {
        tmp_path / "outbox" / "released" / "runs": "is there to leave",
        tmp_path / "site" / "notes.txt": "this is a file",
        tmp_path / "site": "not from MLflow",
    }.items():
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "notes.txt").touch()
        with pytest.raises(OptionError, match=f"--mlflow .*{reason}"):
            require_mlflow(folder, tmp_path)


@pytest.mark.parametrize("board", ["runs", "runs/board"])
def test_folder_that_holds_that_of_tensorboard_is_refused(tmp_path, board):
    with pytest.raises(OptionError, match="the folder of --tensorboard"):
        require_mlflow(tmp_path / "runs", tmp_path / "site", tmp_path / board)


@pytest.mark.usefixtures("environment")
def test_missing_library_is_said_with_what_installs_it(tmp_path, monkeypatch):
    for name in ("mlflow.entities", "mlflow.exceptions", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(StateError, match=r"ddm-fed\[mlflow\]"):
        require_mlflow(tmp_path / "runs", tmp_path)
