"""What examples/deployment promises: no key in an image, no root, no network for training.

What listens is the coordinator, and a site that was told to answer for its expert.

The files are read by what reads them in earnest: hadolint, compose, Helm's own engine, the schemas
of Kubernetes, systemd-analyze, promtool. Where one is not installed its test is skipped.
"""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Started
from federation import create_federation
from prometheus_client.parser import text_string_to_metric_families
from typed import problems_with

import ddm_fed
from coordinator.status.report import STATES
from sites.workspace import SiteFolder, SiteSettings

ROOT = Path(__file__).parents[2]
DEPLOYMENT = ROOT / "examples" / "deployment"
BIN = Path(sys.executable).parent
CONTAINERFILE = DEPLOYMENT / "containers" / "Containerfile"
COMPOSE = DEPLOYMENT / "compose" / "compose.yaml"
CHART = DEPLOYMENT / "helm" / "ddm-fed"
MONITORING = DEPLOYMENT / "monitoring"
UNITS = sorted((DEPLOYMENT / "systemd").iterdir())
PROGRAMS = {"coordinator": "ddm-coord", "site": "ddm-site"}
MOST_EXPOSED = 15  # tenths, as systemd-analyze counts: 10.0 is a unit without any protection
KUBERNETES = "1.31"
VALUES: dict[str, dict[str, Any]] = {
    "coordinator": {},
    "coordinator, paused": {"coordinator": {"paused": True}},
    "coordinator, with all": {
        "coordinator": {
            "enroll": True,
            "shareEnsemble": True,
            "from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "monitoring": {"enabled": True},
        },
        "image": {"pullSecrets": [{"name": "registry"}]},
    },
    "site": {"role": "site"},
    "site that trains": {
        "role": "site",
        "site": {"train": {"enabled": True, "imagesClaim": "images"}},
        "storage": {"existingClaim": "hospital"},
    },
    "site that serves": {
        "role": "site",
        "site": {
            "serveExpert": {"enabled": True, "service": {"type": "LoadBalancer"}, "threads": 2},
            "train": {"enabled": True},
        },
    },
    "site that serves, paused": {
        "role": "site",
        "site": {"serveExpert": {"enabled": True, "paused": True}},
    },
}


def tool(name: str) -> str:
    """Returns a program, or skips the test that needs it."""
    found = shutil.which(name) or shutil.which(name, path=str(BIN))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def said_by(*words: object, cwd: Path = ROOT) -> str:
    ended = subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def require_can_be_run(program: str, words: list[str]) -> None:
    """A command is one of ours, with options it has and nothing missing."""
    assert problems_with([program, *words], whole=True) == []


# Containers


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions of the Containerfile, their lines joined."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_containerfile_passes_hadolint():
    said_by(tool("hadolint"), CONTAINERFILE)


def test_images_hold_the_source_and_nothing_else_of_a_checkout():
    copied = [rest.split() for name, rest in instructions() if name in ("COPY", "ADD")]
    ours = [words for words in copied if not words[0].startswith("--from=")]
    assert sorted(word for words in ours for word in words[:-1]) == sorted(
        ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", *PACKAGES]
    )


PACKAGES = ("ddm_fed", "sites", "coordinator")


def test_images_do_not_run_as_root():
    found = instructions()
    stages = [at for at, (name, _) in enumerate(found) if name == "FROM"]
    users = [at for at, (name, rest) in enumerate(found) if (name, rest) == ("USER", "10001:10001")]
    assert [rest for name, rest in found if name == "USER"] == ["10001:10001"]
    assert stages[1] < users[0] < stages[2]  # of the stage that both images are made from
    assert [found[at][1] for at in stages[2:]] == ["base AS site", "base AS coordinator"]


def test_what_an_image_runs_by_itself_is_a_command():
    found = [rest for name, rest in instructions() if name in ("ENTRYPOINT", "CMD")]
    assert [json.loads(text) for text in found[:2]] == [["ddm-site"], ["--help"]]
    require_can_be_run(*json.loads(found[2]), json.loads(found[3]))


# Compose


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_compose_takes_the_file(tmp_path):
    profiles = ("--profile", "sites", "--profile", "serve-expert")
    words = (tool("docker-compose"), "-f", COMPOSE, *profiles, "config", "--services")
    assert sorted(said_by(*words).split()) == sorted(services())


@pytest.mark.parametrize("name", services())
def test_service_of_compose_has_no_rights_and_writes_nowhere_but_its_volume(name):
    service = services()[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert "cap_add" not in service
    assert "privileged" not in service
    written = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
    assert len(written) == 1
    assert written[0].endswith(":/srv/ddm")
    assert service["environment"]["DDM_FED_PASSPHRASE_FILE"] == "/run/secrets/passphrase"
    assert [secret["target"] for secret in service["secrets"]] == ["passphrase"]


def test_what_sees_images_has_no_network_and_what_has_one_sees_none():
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    for name, service in services().items():
        sees_images = any(":/images" in volume for volume in service["volumes"])
        assert sees_images == name.endswith("-train")
        assert (service.get("network_mode") == "none") == sees_images
        if name.endswith("-send"):
            assert service["networks"] == ["exchange"]
            assert "ports" not in service
    assert networks["exchange"] == {"internal": True}


def test_coordinator_of_compose_runs_a_command_with_the_health_check_of_its_page():
    service = services()["coordinator"]
    require_can_be_run("ddm-coord", service["command"])
    assert "8470/healthz" in service["healthcheck"]["test"][-1]


def test_site_of_compose_answers_for_its_expert_only_where_it_is_asked_to():
    found = {name: service for name, service in services().items() if "ports" in service}
    assert sorted(found) == ["coordinator", "hospital-a-serve"]
    service = found["hospital-a-serve"]
    assert service["profiles"] == ["serve-expert"]
    require_can_be_run("ddm-site", service["command"])
    assert "0.0.0.0:8445" in service["command"]
    assert service["ports"] == ["8445:8445"]
    assert "8445" in service["healthcheck"]["test"][-1]
    assert service["restart"] == "unless-stopped"
    threads = service["environment"]["OMP_NUM_THREADS"]
    assert float(threads) == service["cpus"]


# Kubernetes


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the objects that Helm makes of the chart."""
    if shutil.which("helm"):
        given = (f"--set-json={name}={json.dumps(value)}" for name, value in values.items())
        texts = [said_by("helm", "template", "demo", CHART, *given)]
    elif find_spec("helm_python"):
        from helm_python.chart import Chart

        with Chart.load(CHART) as chart:
            texts = list(chart.render(values=values, name="demo").values())
    else:
        pytest.skip("neither helm nor helm_python is installed")
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the template of every pod."""
    found = []
    for item in objects:
        spec = item["spec"].get("jobTemplate", item)["spec"]
        if "template" in spec:
            found.append(spec["template"])
    return found


def policy_of(pod: dict[str, Any], objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the one network policy that chooses a pod."""
    labels = pod["metadata"]["labels"].items()
    (found,) = [
        item["spec"]
        for item in objects
        if item["kind"] == "NetworkPolicy"
        and item["spec"]["podSelector"]["matchLabels"].items() <= labels
    ]
    return found


def test_chart_passes_helms_lint():
    if shutil.which("helm"):
        said_by("helm", "lint", "--strict", CHART)
        return
    lint = pytest.importorskip("helm_python.chart").lint
    found = lint(str(CHART))
    assert found["errors"] == []
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]


def test_chart_refuses_a_role_that_is_none():
    if not find_spec("helm_python"):
        pytest.skip("helm_python is not installed")
    with pytest.raises(Exception, match="/role"):
        rendered({"role": "other"})


@pytest.mark.parametrize("case", VALUES)
def test_objects_of_the_chart_are_those_of_kubernetes(case):
    validate = pytest.importorskip("kubernetes_validate").validate
    for item in rendered(VALUES[case]):
        validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", VALUES)
def test_pods_have_no_rights_and_write_nowhere_but_their_volume(case):
    for pod in pods(rendered(VALUES[case])):
        spec = pod["spec"]
        context = spec["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        # another pass would open the key files to the group, and such keys are refused
        assert context["fsGroupChangePolicy"] == "OnRootMismatch"
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"limits", "requests"} <= container["resources"].keys()
            program = PROGRAMS["site" if "-site:" in container["image"] else "coordinator"]
            if "command" not in container:
                require_can_be_run(program, container["args"])


def test_pod_that_trains_has_no_network_and_no_other_sees_images():
    objects = rendered(VALUES["site that trains"])
    found = {component(pod): pod for pod in pods(objects)}
    assert sorted(found) == ["send", "train"]
    for part, pod in found.items():
        policy = policy_of(pod, objects)
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["ingress"] == []
        assert bool(policy["egress"]) == (part == "send")
        mounted = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert ("images" in mounted) == (part == "train")


def component(pod: dict[str, Any]) -> str:
    return pod["metadata"]["labels"]["app.kubernetes.io/component"]


def test_pod_that_serves_an_expert_lets_in_the_coordinators_address_and_connects_to_nobody():
    objects = rendered(VALUES["site that serves"])
    found = {component(pod): pod for pod in pods(objects)}
    assert sorted(found) == ["send", "serve", "train"]
    policy = policy_of(found["serve"], objects)
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8445]
    assert rule["from"] == [{"ipBlock": {"cidr": "192.0.2.1/32"}}]
    (service,) = [item["spec"] for item in objects if item["kind"] == "Service"]
    assert service["externalTrafficPolicy"] == "Local"  # else all have a node's address
    (server,) = found["serve"]["spec"]["containers"]
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in server["env"]
    check = services()["hospital-a-serve"]["healthcheck"]["test"]
    for probe in ("startupProbe", "livenessProbe"):
        assert ["CMD", *server[probe]["exec"]["command"]] == check
    labels = found["serve"]["metadata"]["labels"]
    for part in ("send", "train"):  # one node has the volume
        (rule,) = found[part]["spec"]["affinity"]["podAffinity"].popitem()[1]
        assert rule["labelSelector"]["matchLabels"] == labels


def test_site_of_the_chart_serves_nothing_unless_it_is_told_to_and_by_whom_it_is_asked():
    assert {component(pod) for pod in pods(rendered(VALUES["site"]))} == {"send"}
    if not find_spec("helm_python"):
        pytest.skip("helm_python is not installed")
    with pytest.raises(Exception, match="/site/serveExpert/from"):
        rendered({"role": "site", "site": {"serveExpert": {"enabled": True, "from": []}}})


def test_coordinator_in_kubernetes_connects_to_nobody_and_shows_its_page_to_monitoring_alone():
    for case in ("coordinator", "coordinator, with all"):
        objects = rendered(VALUES[case])
        (pod,) = pods(objects)
        policy = policy_of(pod, objects)
        assert policy["egress"] == []
        for rule in policy["ingress"]:
            ports = {port["port"] for port in rule["ports"]}
            if 8470 in ports:
                assert ports == {8470}
                assert rule["from"][0]["namespaceSelector"]["matchLabels"]
        (server,) = pod["spec"]["containers"]
        web = next(word for word in server["args"] if word.startswith("--web="))
        assert web.startswith("--web=0.0.0.0" if "all" in case else "--web=127.0.0.1")


def test_passphrase_is_mounted_and_never_a_value():
    for item in pods(rendered(VALUES["site that trains"])):
        (secret,) = [v["secret"] for v in item["spec"]["volumes"] if "secret" in v]
        assert secret["secretName"] == "ddm-fed-passphrase"
    assert "kind: Secret" not in "".join(path.read_text() for path in CHART.rglob("*.yaml"))


# systemd


@pytest.fixture
def installed_units(tmp_path: Path) -> Path:
    """The units with the programs at their place on this machine."""
    for unit in UNITS:
        text = unit.read_text().replace("/opt/ddm-fed/bin/", f"{BIN}/")
        text = text.replace("/opt/ddm-fed/share/", f"{DEPLOYMENT}/")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def test_units_pass_systemds_own_check(installed_units):
    said_by(tool("systemd-analyze"), "verify", "--man=no", *sorted(installed_units.iterdir()))


@pytest.mark.parametrize("unit", [u.name for u in UNITS if u.suffix == ".service"])
def test_unit_is_hardly_exposed(installed_units, unit):
    words = ("security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED}")
    said_by(tool("systemd-analyze"), *words, installed_units / unit, cwd=installed_units)


@pytest.mark.parametrize("unit", [u for u in UNITS if u.suffix == ".service"], ids=lambda u: u.name)
def test_unit_starts_commands_and_takes_its_passphrase_from_a_credential(unit):
    text = unit.read_text().replace("\\\n", " ")
    started = [line.split()[1:] for line in text.splitlines() if line.startswith("ExecStart=")]
    programs = re.findall(r"^ExecStart=/opt/ddm-fed/\w+/([\w.-]+)", text, re.MULTILINE)
    for program, words in zip(programs, started, strict=True):
        if program.startswith("ddm-"):
            require_can_be_run(program, words)
            assert "LoadCredential=passphrase:/etc/ddm/passphrase" in text
            assert "Environment=DDM_FED_PASSPHRASE_FILE=%d/passphrase" in text
        else:
            assert (DEPLOYMENT / program).is_file()


def test_site_trains_without_a_network_and_listens_only_to_answer_for_its_expert():
    texts = {unit.name: unit.read_text() for unit in UNITS}
    assert "PrivateNetwork=yes" in texts["ddm-site-train.service"]
    assert "SocketBindDeny=any" in texts["ddm-site-submit.service"]
    assert "SocketBindAllow" not in texts["ddm-site-submit.service"]
    lines = texts["ddm-site-serve-expert.service"].splitlines()
    assert [line for line in lines if line.startswith(("SocketBind", "IPAddress"))] == [
        "SocketBindDeny=any",
        "SocketBindAllow=tcp:8445",
        "IPAddressDeny=any",
        "IPAddressAllow=localhost 192.0.2.1",
    ]
    root = f"sha256:{'0' * 64}"
    settings = SiteSettings(name="hospital", root=root, max_epsilon=Decimal(1))
    site = SiteFolder(Path("/var/lib/ddm-site/hospital"), settings)
    for kept in (site.images, site.latents):
        assert f"InaccessiblePaths=-{kept}" in lines


# Monitoring and backup


def test_alerts_come_when_they_should():
    promtool = tool("promtool")
    said_by(promtool, "check", "config", "prometheus.yml", cwd=MONITORING)
    said_by(promtool, "test", "rules", "alerts_test.yml", cwd=MONITORING)
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    tested = (MONITORING / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in rules if f"alertname: {rule['alert']}\n" not in tested] == []


def expressions() -> list[str]:
    """Returns what dashboard and alerts ask Prometheus for."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    return asked + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


@pytest.mark.slow
def test_dashboard_and_alerts_ask_for_metrics_that_a_server_has(tmp_path):
    fed = create_federation(tmp_path / "fed")
    words = ("--listen", "127.0.0.1:0", "--web", "127.0.0.1:0", "--web-name", "coordinator")
    server = Started("ddm-coord", "serve", "--json", "--coordinator", fed.home.path, *words)
    try:
        url = json.loads(server.stdout.readline())["web"]
        asked = urllib.request.Request(f"{url}metrics", headers={"Host": "coordinator:8470"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            text = answer.read().decode()
    finally:
        server.kill()
        server.wait(20)
        server.stdout.close()
    families = list(text_string_to_metric_families(text))
    served = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    used = {name for expr in expressions() for name in re.findall(r"\bddm_fed_\w+", expr)}
    assert used - served == set()
    assert served - used == set()  # and each is shown somewhere
    states = {state.replace(" ", "_") for state in STATES}
    assert set(re.findall(r'state="(\w+)"', " ".join(expressions()))) <= states


def test_panels_of_the_dashboard_lie_beside_one_another():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_scripts_pass_shellcheck():
    said_by(tool("shellcheck"), *sorted(DEPLOYMENT.glob("*.sh")))


def test_versions_are_those_of_the_library():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {ddm_fed.__version__}
    values = yaml.safe_load((CHART / "values.yaml").read_text())["image"]
    images = [values["coordinator"], values["site"], *(s["image"] for s in services().values())]
    assert {image.partition(":")[2] for image in images} == {ddm_fed.__version__}
