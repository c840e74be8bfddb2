"""A Flower deployment of real processes on loopback. Loaded by the tests that need one."""

import contextlib
import datetime as dt
import importlib.metadata
import ipaddress
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import flower_programs
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ports import free_port

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "flower" / "app"
SUPERVISE, PULL = APP.parent / "supervise.py", APP.parent / "pull.py"
STOP_S = 10
PROGRAMS_S = 150


def make_programs(folder: Path) -> Path:
    """Returns a folder with Flower's programs for this interpreter, wherever pip put them.

    Flower starts its own processes by name, so the folder goes onto PATH.
    """
    folder.mkdir()
    for entry in importlib.metadata.distribution("flwr").entry_points:
        if entry.group == "console_scripts":
            module, _, function = entry.value.partition(":")
            program = folder / entry.name
            program.write_text(
                f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
                f"sys.argv[0] = {entry.name!r}\nsys.exit({function}())\n"
            )
            program.chmod(0o755)
    return folder


def write_tls(folder: Path) -> None:
    """Writes ca.crt, server.pem and server.key for 127.0.0.1 into `folder`."""
    now = dt.datetime.now(dt.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])

    def certificate(name, public, *extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, hashes.SHA256())

    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    issued = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    ca = certificate(
        "test CA",
        ca_key.public_key(),
        (x509.BasicConstraints(True, 0), True),
        (usage, True),
        (identifier, False),
    )
    server = certificate(
        "localhost",
        key.public_key(),
        (names, False),
        (x509.BasicConstraints(False, None), True),
        (issued, False),
        (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False),
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    (folder / "server.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "server.key").chmod(0o600)


def write_node_key(folder: Path, name: str) -> None:
    """Writes NAME and NAME.pub, as `ssh-keygen -t ecdsa -b 384` does."""
    key = ec.generate_private_key(ec.SECP384R1())
    (folder / name).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    (folder / name).chmod(0o600)
    (folder / f"{name}.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )


@dataclass
class Deployment:
    """A SuperLink on loopback, an edge in front of it, and whoever is started besides."""

    path: Path
    superlink_port: int = field(default_factory=free_port)
    edge_port: int = field(default_factory=free_port)
    started: list[subprocess.Popen] = field(default_factory=list)
    node_ids: dict[str, str] = field(default_factory=dict)

    @property
    def ca(self) -> Path:
        return self.path / "ca.crt"

    def log(self, name: str) -> str:
        """What a process said until now."""
        return (self.path / f"{name}.log").read_text(errors="replace")

    def environment(self, name: str) -> dict[str, str]:
        """The environment of one process: its own Flower home, and no calls to the outside."""
        home = self.path / f"home-{name}"
        home.mkdir(exist_ok=True)
        names = ("HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")
        kept = {key: os.environ[key] for key in names if key in os.environ}
        return kept | {
            "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, name: str, *command: object, **variables: str) -> subprocess.Popen:
        """Starts a process in a group of its own; `stop` ends all that were started."""
        with (self.path / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [self.program(command[0]), *map(str, command[1:])],
                env=self.environment(name) | variables,
                cwd=self.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def program(self, name: object) -> str:
        found = self.path / "bin" / str(name)
        return str(found if found.exists() else name)

    def stop(self) -> None:
        """Ends every process that was started here, and their children."""
        for process in reversed(self.started):
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + STOP_S
        for process in reversed(self.started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def configure(self, name: str, port: int) -> dict[str, str]:
        """Returns the environment of a `flwr` that talks to this port."""
        env = self.environment(name)
        (Path(env["FLWR_HOME"]) / "config.toml").write_text(
            '[superlink]\ndefault = "ddm"\n[superlink.ddm]\n'
            f'address = "127.0.0.1:{port}"\nroot-certificates = "{self.ca}"\n'
        )
        return env

    def cli(self, *words: object, port: int | None = None) -> subprocess.CompletedProcess:
        """Runs `flwr`, by default as the operator on the coordinator's machine."""
        return subprocess.run(
            [self.program("flwr"), *map(str, words)],
            env=self.configure("operator", port or self.superlink_port),
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAMS_S,
            check=False,
        )

    def start_superlink(self) -> None:
        """Starts SuperLink and edge, and waits until both answer."""
        server = ("--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key")
        self.start(
            "superlink",
            *("flower-superlink", "--host", "127.0.0.1", "--port", self.superlink_port),
            *("--ssl-ca-certfile", "ca.crt", *server, "--enable-supernode-auth"),
            "--disable-runtime-dependency-installation",
        )
        self.start(
            "edge",
            *(
                sys.executable,
                "-m",
                "coordinator.server.flower_edge",
                "--listen",
                f"127.0.0.1:{self.edge_port}",
            ),
            *("--certificate", "server.pem", "--key", "server.key", "--superlink-ca", "ca.crt"),
            *("--superlink", f"https://127.0.0.1:{self.superlink_port}"),
        )
        self.wait_for(lambda: self.answers(self.superlink_port), "superlink")
        self.wait_for(lambda: self.answers(self.edge_port), "edge")

    def answers(self, port: int) -> bool:
        try:
            self.get(port, "/health")
        except httpx.HTTPError:
            return False
        return True

    def get(self, port: int, path: str) -> httpx.Response:
        """Asks one of the two servers with GET."""
        trusted = ssl.create_default_context(cafile=str(self.ca))
        with httpx.Client(verify=trusted, trust_env=False, timeout=5) as client:
            return client.get(f"https://127.0.0.1:{port}{path}")

    def wait_for(self, holds, name: str, timeout_s: float = PROGRAMS_S) -> None:
        """Waits until `holds()`; shows the log of the process `name` if it never does."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if holds():
                return
            time.sleep(0.2)
        raise TimeoutError(f"{name} did not get there in {timeout_s} s:\n{self.log(name)[-4000:]}")

    def register(self, *names: str) -> None:
        """Makes a key for each site, and registers it under the site's name."""
        for name in names:
            write_node_key(self.path, name)
            words = ("supernode", "register", f"{name}.pub", "--name", name, "--format", "json")
            done = self.cli(*words)
            assert done.returncode == 0, done.stdout + done.stderr
            self.node_ids[name] = str(json.loads(done.stdout)["node-id"])

    def start_node(
        self,
        name: str,
        released: Path,
        receipts: Path,
        *,
        supervised: bool = False,
        code: Path | None = None,
    ) -> subprocess.Popen:
        """Starts the SuperNode of a site, which reaches the coordinator through the edge only.

        Args:
            name: The site, and its key's file.
            released: Its outbox/released.
            receipts: Where it may write receipts.
            supervised: Whether it is started again when it ends.
            code: A folder with other code than the installed one, for sites that lie.
        """
        watch = (sys.executable, SUPERVISE, "--pause", "1", "--") if supervised else ()
        return self.start(
            f"node-{name}",
            *(
                *watch,
                self.program("flower-supernode"),
                "--superlink",
                f"127.0.0.1:{self.edge_port}",
            ),
            *("--root-certificates", "ca.crt", "--auth-supernode-private-key", name),
            *("--port", free_port()),
            *("--node-config", f'released="{released}" receipts="{receipts}"'),
            **({"PYTHONPATH": str(code)} if code is not None else {}),
        )

    def statuses(self) -> dict[str, str]:
        """What the SuperLink says of every registered site: online, offline or registered."""
        found = json.loads(self.cli("supernode", "list", "--format", "json").stdout)
        by_id = {node["node-id"]: node["status"] for node in found["nodes"]}
        return {name: by_id[node_id] for name, node_id in self.node_ids.items()}

    def start_run(self, name: str, **config: object) -> subprocess.Popen:
        """Starts a run as the operator; its log has the lines of the ServerApp."""
        self.configure(name, self.superlink_port)
        words = " ".join(
            f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in config.items()
        )
        return self.start(name, sys.executable, PULL, "-c", words)

    def events(self, name: str) -> list[dict]:
        """The lines of JSON that the ServerApp printed."""
        found = []
        for line in self.log(name).splitlines():
            start = line.find('{"from"')
            if start >= 0:
                found.append(json.loads(line[start:]))
        return found


@contextlib.contextmanager
def deployment(path: Path, *, forked: bool = False) -> Iterator[Deployment]:
    """Yields a running SuperLink behind its edge; everything is stopped afterwards.

    Args:
        path: Its folder.
        forked: Whether Flower's programs are forks of one process; see `flower_programs`.
    """
    path.mkdir(exist_ok=True)
    write_tls(path)
    found = Deployment(path)
    with tempfile.TemporaryDirectory() as short:  # the address of a socket has a hundred characters
        try:
            if forked:
                address = Path(short) / "forks"
                flower_programs.write_programs(path / "bin", str(address))
                found.start("programs", sys.executable, flower_programs.__file__, address)
                found.wait_for(address.exists, "programs")
            else:
                make_programs(path / "bin")
            found.start_superlink()
            yield found
        finally:
            found.stop()
