"""Without any network: real commands in a network namespace that has loopback only.

The folder way works from the first key to the verified ensemble, and no process so much as tries
to call out: strace sees every connect and sendto of every one of them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from federation import PLAN_TOML

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
EXAMPLE = Path(__file__).parents[2] / "examples" / "offline"
NAMESPACE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
SITES = {"hospital-a": "digits:0-4", "hospital-b": "digits:5-9"}
CALLS = re.compile(r"\b(?:connect|sendto|sendmsg|sendmmsg)\(.*")
LOCAL = re.compile(
    r"sa_family=(?:AF_UNIX|AF_NETLINK|AF_UNSPEC)|inet_addr\(\"127\.|inet_pton\(AF_INET6, \"::1\""
)


def has_namespace() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    words = ["strace", "-f", "-qq", "-e", "trace=connect", "true"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


needs_namespace = pytest.mark.skipif(
    not has_namespace(), reason="needs root, unshare and ip to make a network namespace"
)


def called_out(trace: str) -> list[str]:
    """Returns the calls of a trace that lead anywhere but to this machine itself.

    To ask for a name is to call out, even if the one that is asked first is on this machine.
    """
    calls = [found.group() for line in trace.splitlines() if (found := CALLS.search(line))]
    return [
        call
        for call in calls
        if "sa_family" in call and (LOCAL.search(call) is None or "htons(53)" in call)
    ]


class Offline:
    """Runs commands in the namespace, and keeps what they called."""

    def __init__(self, folder: Path):
        self.folder, self.traces = folder, []
        self._number = 0

    def __call__(self, program: str, *arguments: object) -> str:
        words = [str(BIN / program), *map(str, arguments)]
        if can_trace():
            self._number += 1
            trace = self.folder / f"trace-{self._number:02d}"
            self.traces.append(trace)
            calls = "trace=connect,sendto,sendmsg,sendmmsg"
            words = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(trace), *words]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        run = subprocess.run(
            [*NAMESPACE, *words], capture_output=True, text=True, env=kept, check=False
        )
        assert run.returncode == 0, f"{program} {arguments}: {run.stderr}"
        return run.stdout


@needs_namespace
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_folder_way_needs_no_network_and_nothing_tries_to_call_out(tmp_path):
    offline, hub, medium = Offline(tmp_path), tmp_path / "hub", tmp_path / "medium"
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN_TOML.replace("radius = 3", "radius = 5"))
    root = offline("ddm-coord", "init", hub, "--federation", "test").strip()
    for name in SITES:
        offline("ddm-site", "init", tmp_path / name, "--name", name, "--root", root)
    requests = [tmp_path / name / "enrolment.dsse.json" for name in SITES]
    offline("ddm-coord", "roster", "add", "--coordinator", hub, *requests)
    offline("ddm-coord", "publish", plan, "--coordinator", hub)
    for name, data in SITES.items():
        options = ("--site", tmp_path / name, "--plan", hub / "published")
        offline("ddm-site", "train", *options, "--data", data)
        offline("ddm-site", "review", *options)
        offline("ddm-site", "release", *options)
        offline("ddm-site", "export", medium, *options)
    offline("ddm-coord", "import", medium, "--coordinator", hub)
    for name in SITES:
        told = json.loads(
            offline("ddm-site", "import", medium, "--json", "--site", tmp_path / name)
        )
        assert [item["state"] for item in told["submissions"]] == ["admitted"]
    offline("ddm-coord", "assemble", tmp_path / "ensemble", "--coordinator", hub)
    verified = offline("ddm-coord", "verify", tmp_path / "ensemble", "--root", root, "--json")
    assert sorted(member["site"] for member in json.loads(verified)["members"]) == sorted(SITES)
    few = ("--count", 2, "--steps", 2, "--out", tmp_path / "samples")
    offline("ddm-coord", "sample", tmp_path / "ensemble", "--root", root, *few)
    if not offline.traces:
        pytest.skip("without strace the journey is shown, but not that nothing tried to call out")
    assert len(offline.traces) == 19  # every command left one
    assert {trace.name: called_out(trace.read_text()) for trace in offline.traces} == {
        trace.name: [] for trace in offline.traces
    }


@needs_namespace
@pytest.mark.skipif(not can_trace(), reason="needs strace")
@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("socket.create_connection(('127.0.0.1', 9), 1)", 0),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.53', 53))", 1),
        ("socket.create_connection(('192.0.2.1', 443), 1)", 1),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))", 1),
        ("socket.create_connection(('2001:db8::1', 443), 1)", 1),
    ],
)
def test_trace_finds_a_call_out_and_leaves_loopback_alone(tmp_path, code, calls):
    trace = tmp_path / "trace"
    words = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", trace]
    words += ["-e", "trace=connect,sendto,sendmsg,sendmmsg", sys.executable, "-c"]
    subprocess.run([*NAMESPACE, *words, f"import socket\n{code}"], capture_output=True, check=False)
    assert len(called_out(trace.read_text())) == calls


def small_wheelhouse(folder: Path) -> Path:
    """Returns a wheelhouse as the script leaves it, with nothing to install in it."""
    folder.mkdir()
    shutil.copyfile(EXAMPLE / "install.sh", folder / "install.sh")
    for name in ("constraints.txt", "requirements.txt", "some-1.0-py3-none-any.whl"):
        (folder / name).write_text("")
    sums = subprocess.run("sha256sum -- *", shell=True, cwd=folder, capture_output=True, check=True)
    (folder / "SHA256SUMS").write_bytes(sums.stdout)
    return folder


def install(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    words = ["sh", folder / "install.sh", folder.parent / "venv", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def change(wheels: Path) -> None:
    (wheels / "some-1.0-py3-none-any.whl").write_text("else")


def add(wheels: Path) -> None:
    (wheels / "other-1.0-py3-none-any.whl").write_text("")


@pytest.mark.parametrize("spoil", [change, add])
def test_wheelhouse_that_somebody_changed_is_not_installed_from(tmp_path, spoil):
    wheels = small_wheelhouse(tmp_path / "wheels")
    spoil(wheels)
    assert install(wheels).returncode == 1
    assert not (tmp_path / "venv").exists()


def test_wheelhouse_with_another_digest_than_was_read_out_is_not_installed_from(tmp_path):
    wheels = small_wheelhouse(tmp_path / "wheels")
    ended = install(wheels, "0" * 64)
    assert ended.returncode == 1
    assert "was read out" in ended.stderr
    assert not (tmp_path / "venv").exists()
