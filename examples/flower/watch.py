"""Says which sites Flower holds for offline: `python watch.py hospital-a.json …`.

A file is what `flwr supernode register --format json` printed, named after the site; SITE=NODE_ID
says the same. A SuperNode may be running and yet be forgotten by the SuperLink: the process tells
nothing, only `flwr supernode list` does. Run it on the coordinator's machine from a timer; it ends
with status 1 if a site is not online, and prints one line of JSON per site.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
TIMEOUT_S = 60


def main() -> int:
    """Compares what is expected with what the SuperLink says."""
    if not sys.argv[1:]:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    expected = dict(map(site_and_node, sys.argv[1:]))
    done = subprocess.run(
        ["flwr", "supernode", "list", "--format", "json"],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(f"error: flwr does not reach the SuperLink\n{done.stdout}{done.stderr}\n")
        return 1
    found = {node["node-id"]: node for node in json.loads(done.stdout)["nodes"]}
    missing = 0
    for site, node_id in expected.items():
        status = found.get(node_id, {}).get("status", "not registered")
        print(json.dumps({"site": site, "node_id": node_id, "status": status}))
        missing += status != "online"
    return 1 if missing else 0


def site_and_node(word: str) -> tuple[str, str]:
    """Returns name and node of a site, out of `SITE=NODE_ID` or a file of its registration."""
    site, equals, node_id = word.partition("=")
    if equals:
        return site, node_id
    file = Path(word)
    try:
        return file.stem, str(json.loads(file.read_text())["node-id"])
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {word} is neither SITE=NODE_ID nor what `register` printed: {error!r}")


if __name__ == "__main__":
    sys.exit(main())
