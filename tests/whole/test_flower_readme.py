"""The commands of examples/flower/README.md, as they stand, on a machine of their own.

The machine is a namespace: its network is loopback, its /etc, /srv and /var/lib are copies or
empty, and what runs in it ends with it. So the lines may name port 443, make a user and write into
/srv, as they tell their readers to.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import blocks_of
from flower_deployment import ROOT, make_programs

pytestmark = [pytest.mark.processes, pytest.mark.timeout(280)]

README = ROOT / "examples" / "flower" / "README.md"
COORDINATOR, SITE = "The coordinator's machine", "A site's machine"
STUDY = "A study with virtual sites, and the baseline"  # by hand; the baseline: test_fedavg_app
NAMESPACE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
PROGRAMS = ("unshare", "ip", "mount", "useradd", "runuser", "openssl", "ssh-keygen")
MACHINE = """
set -eu
mount -t tmpfs tmpfs /srv && mount -t tmpfs tmpfs /var/log && mount -t tmpfs tmpfs /var/lib
mkdir /srv/etc && cp -a /etc/. /srv/etc/ && mount --bind /srv/etc /etc
ip link set lo up
{opened}
echo "127.0.0.1 localhost fleet.example.org" > /etc/hosts
groupadd hospital && useradd --gid hospital --no-create-home clerk
cp -a {base}/files/. /srv/ && chmod 755 /srv
chown -R clerk:hospital /srv/hospital-a
export PATH=/srv/bin:{bin}:$PATH HOME=/srv/home NO_COLOR=1
listens() {{ until (exec 3<>/dev/tcp/127.0.0.1/$1) 2>/dev/null; do sleep 0.2; done; }}
cd /srv/coordinator
{common}
"""


def opened() -> str:
    """Returns commands that let every user of the machine run this environment, as one in /opt.

    What no other user may enter, such as /root, is covered by a folder that has nothing else in it.
    """
    wanted: dict[Path, list[Path]] = {}
    for path in dict.fromkeys((Path(sys.base_prefix), Path(sys.prefix), ROOT)):
        outwards = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 1]
        if outwards:
            wanted.setdefault(outwards[0], []).append(path)
    lines = []
    for closed, paths in wanted.items():
        held = [f"/srv/held/{number}" for number, _ in enumerate(paths)]
        lines += [
            f"mkdir -p {hold} && mount --bind {path} {hold}"
            for hold, path in zip(held, paths, strict=True)
        ]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {closed}")
        lines += [
            f"mkdir -p {path} && mount --move {hold} {path}"
            for hold, path in zip(held, paths, strict=True)
        ]
    return "\n".join(lines)


def can_be_a_machine() -> bool:
    if any(shutil.which(name) is None for name in PROGRAMS):
        return False
    probe = (
        f"set -e; mount -t tmpfs tmpfs /srv\n{opened()}\n"
        f'exec runuser -u nobody -- {sys.executable} -c "import coordinator"'
    )
    words = [*NAMESPACE, "bash", "-c", probe]
    return subprocess.run(words, capture_output=True, check=False, cwd="/").returncode == 0


needs_a_machine = pytest.mark.skipif(
    not can_be_a_machine(),
    reason="needs root, unshare, useradd, openssl, ssh-keygen, and an environment all may read",
)


def shell_blocks(section: str) -> list[str]:
    return [
        block.text for block in blocks_of(README) if block.section == section and block.kind == "sh"
    ]


def test_readme_of_flower_has_only_blocks_that_are_run():
    found = [(block.section, block.kind) for block in blocks_of(README)]

    assert found == [
        ("", "sh"),
        *[(COORDINATOR, "sh")] * 4,
        *[(SITE, "sh")] * 4,
        (STUDY, "sh"),
    ]


@pytest.fixture
def machine(stages, scratch):
    """Returns a function that runs lines of shell on a new machine: exit status, and all it said.

    It has a coordinator with three sites, and one of these, which has released its bundle.
    """
    files = scratch / "files"
    stages.released.copy(files, "consortium", "hospital-a")
    shutil.copytree(files / "consortium" / "published", files / "hospital-a" / "published")
    make_programs(files / "bin")
    python = files / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (files / "home").mkdir()
    unread = shutil.ignore_patterns("__pycache__", "*.fab")
    for name in ("coordinator", "site"):
        shutil.copytree(README.parent, files / name / "examples" / "flower", ignore=unread)
    (common,) = shell_blocks("")
    places = {"base": scratch, "bin": Path(sys.executable).parent, "opened": opened()}

    def run(lines: str) -> tuple[int, str]:
        script = scratch / "machine.sh"
        script.write_text(MACHINE.format(common=common, **places) + lines)
        with (scratch / "log").open("wb") as log:
            done = subprocess.run(
                [*NAMESPACE, "bash", script],
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=250,
                check=False,
            )
        return done.returncode, (scratch / "log").read_text(errors="replace")

    return run


@needs_a_machine
def test_readme_of_flower_run_line_by_line_ends_with_an_admitted_bundle(machine):
    certificates, start, register, pull = shell_blocks(COORDINATOR)
    prepare, pin, supernode, collect = shell_blocks(SITE)

    status, said = machine(
        f"{certificates}\n{start}\nlistens 18000; listens 443\n"
        f"cd /srv/site\n{prepare}\ncp transport.key.pub /srv/coordinator/hospital-a.pub\n"
        f"cp /srv/coordinator/ca.crt .\n(\n{pin}\n{supernode}\n) &\n"
        f"cd /srv/coordinator\n{register}\n{pull}\n"
        f"cd /srv/site\nrunuser -u clerk -- bash -euc {shlex.quote(collect)}\necho all was run\n"
    )

    assert status == 0, said[-6000:]
    assert re.search(r'"from": "flower:hospital-a".*"state": "admitted"', said)
    assert re.search(r'"site": "hospital-a", "node_id": "\d+", "status": "online"', said)
    assert "admitted; the signed receipt is in receipts/" in said
    assert said.rstrip().endswith("all was run")


@needs_a_machine
def test_pull_with_a_certificate_without_the_address_says_what_it_waits_for_and_ends(machine):
    certificates, start, _, pull = shell_blocks(COORDINATOR)
    assert ",IP:127.0.0.1" in certificates

    status, said = machine(
        f"{certificates.replace(',IP:127.0.0.1', '')}\n{start}\nlistens 18000\n"
        f"{pull.replace('pull.py', 'pull.py --start-s 20').splitlines()[0]}\n"
    )

    assert status == 1, said[-6000:]
    assert re.search(r"run \d+ is pending, .*: waiting for the SuperLink to start the app", said)
    assert re.search(r"error: run \d+ was still pending after \d+ s and is stopped", said)
    assert "subjectAltName=DNS:localhost,IP:127.0.0.1" in said


@needs_a_machine
def test_pull_without_a_superlink_ends_with_an_error(machine):
    certificates, start, _, pull = shell_blocks(COORDINATOR)
    configure = start[start.index("mkdir -p ~/.flwr") :]

    status, said = machine(f"{certificates}\n{configure}\n{pull.splitlines()[0]}\n")

    assert status == 1, said[-6000:]
    assert "error: the run could not be started; the lines above say why" in said
