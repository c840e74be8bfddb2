"""torchrun's own launcher, with forks as its processes: real ones, without seconds of imports each.

It starts them, tells each its rank and where the others are, and ends all when one fails, as it
does for `torchrun`, which tests/whole/test_designs.py runs.
"""

from pathlib import Path

import commands
from ports import free_port

# Arguments: the port where processes meet, the script that each runs, and its arguments.
LAUNCH = """
import multiprocessing, runpy, sys, traceback
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def take_part(script, *words):
    sys.argv[:] = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception:
        traceback.print_exc()
        raise

multiprocessing.current_process()._config["daemon"] = False  # it may have processes of its own
port, *words = sys.argv[1:]
config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="none", rdzv_backend="static",
    rdzv_endpoint=f"127.0.0.1:{port}", rdzv_configs={"rank": 0, "timeout": 100},
    local_addr="127.0.0.1", max_restarts=0, start_method="fork",
)
elastic_launch(config, take_part)(*words)
"""


def torchrun(script: Path, *words: object) -> commands.Ended:
    """Runs `script` in two processes that know of each other, to their end."""
    launch = script.with_suffix(".launch.py")
    launch.write_text(LAUNCH)
    env = commands.environment(OMP_NUM_THREADS="1")
    return commands.run(launch, free_port(), script, *words, env=env, timeout=150)
