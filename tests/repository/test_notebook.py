"""examples/notebook, run by a real kernel on the real federation of the tests."""

import base64
import io
import json
import os

import numpy as np
import pytest
from documents import ROOT
from nbclient import NotebookClient
from nbformat import read
from PIL import Image

NOTEBOOK = ROOT / "examples" / "notebook" / "quickstart.ipynb"


def test_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the kernel's client, not of ours
def test_notebook_runs_and_shows_the_grid_of_the_command(stages, scratch, run):
    found = read(NOTEBOOK, as_version=4)
    shown = {"DDM_ENSEMBLE": str(stages.ensemble), "DDM_ROOT": stages.admitted.root}
    kept = {"IPYTHONDIR": str(scratch), "JUPYTER_RUNTIME_DIR": str(scratch / "runtime")}
    client = NotebookClient(
        found, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(scratch)}}
    )
    client.execute(env={**os.environ, **kept, **shown})
    outputs = [item for cell in found.cells for item in cell.get("outputs", ())]
    assert [item for item in outputs if item.output_type == "error"] == []
    (png,) = [item["data"]["image/png"] for item in outputs if "image/png" in item.get("data", {})]
    words = ("--count", 36, "--seed", 1, "--steps", 10, "--out", scratch / "out")
    done = run("ddm-coord", "sample", stages.ensemble, "--root", shown["DDM_ROOT"], *words)
    assert done.code == 0, done.err
    of_notebook = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    of_command = np.asarray(Image.open(scratch / "out" / "grid.png"))
    assert np.array_equal(of_notebook, of_command)
