"""Without any network: real commands in a network namespace that has loopback only.

The folder way works from the first key to the verified ensemble, and no process so much as tries
to call out: strace sees every connect and sendto of every one of them, and of what they import.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
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


# A command a line, each in a process of its own; what they import is imported here, once.
STARTER = """
import json, os, sys
from commands import Started
for line in sys.stdin:
    environment, program, *words = json.loads(line)
    with Started(program, *words, env=environment) as started:
        said = started.communicate()
    print(json.dumps([started.pid, started.returncode, *said]), flush=True)
"""


class Offline:
    """Runs commands in the namespace, and keeps what they called."""

    def __init__(self, folder: Path):
        self.traces = folder / "traces"
        self.traces.mkdir()
        self.commands: list[int] = []
        names = ("PATH", "HOME", "OMP_NUM_THREADS")  # threads that wait for a core take seconds
        self.environment = {name: os.environ[name] for name in names if name in os.environ}

    def __enter__(self) -> "Offline":
        self._starter = subprocess.Popen(
            [*self.words(), sys.executable, "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment | {"PYTHONPATH": str(Path(commands.__file__).parent)},
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._starter:
            self._starter.stdin.close()

    def words(self) -> list[str]:
        """Returns what to put before a command: the namespace, and one trace a process."""
        if not can_trace():
            return NAMESPACE
        calls = "trace=connect,sendto,sendmsg,sendmmsg"
        strace = ["strace", "-ff", "--seccomp-bpf", "-qq", "-e", calls, "-o"]
        return [*NAMESPACE, *strace, str(self.traces / "trace")]

    def __call__(self, program: str, *arguments: object) -> str:
        line = json.dumps([self.environment, program, *map(str, arguments)])
        self._starter.stdin.write(line + "\n")
        self._starter.stdin.flush()
        number, code, out, err = json.loads(self._starter.stdout.readline())
        assert code == 0, f"{program} {arguments}: {err}"
        self.commands.append(number)
        return out

    def script(self, program: str, *arguments: object) -> str:
        """Runs a command as it is installed, from the first line of Python on."""
        words = [*self.words(), str(BIN / program), *map(str, arguments)]
        run = subprocess.run(
            words, capture_output=True, text=True, env=self.environment, check=False
        )
        assert run.returncode == 0, f"{program} {arguments}: {run.stderr}"
        return run.stdout


@needs_namespace
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_folder_way_needs_no_network_and_nothing_tries_to_call_out(tmp_path):
    with Offline(tmp_path) as offline:
        journey(offline, tmp_path)
    traces = {int(trace.suffix[1:]): trace.read_text() for trace in offline.traces.iterdir()}
    if not traces:
        pytest.skip("without strace the journey is shown, but not that nothing tried to call out")
    assert set(offline.commands) < set(traces)  # every command left one
    assert len(offline.commands) == 18
    assert {number: called_out(trace) for number, trace in traces.items()} == {
        number: [] for number in traces
    }


def journey(offline: Offline, tmp_path: Path) -> None:
    hub, medium, plan = tmp_path / "hub", tmp_path / "medium", tmp_path / "plan.toml"
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
    verified = offline.script(
        "ddm-coord", "verify", tmp_path / "ensemble", "--root", root, "--json"
    )
    assert sorted(member["site"] for member in json.loads(verified)["members"]) == sorted(SITES)
    few = ("--count", 2, "--steps", 2, "--out", tmp_path / "samples")
    offline("ddm-coord", "sample", tmp_path / "ensemble", "--root", root, *few)


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
