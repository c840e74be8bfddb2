"""The same released bundles over every way: what is admitted does not know how it came."""

import shutil

import pytest
from federation import SITES, Federation

from coordinator.inbox.admission import admit_arrivals
from coordinator.inbox.removable_medium import Importer, candidates
from coordinator.server.server import ServerOptions, serving
from coordinator.status.metrics import ServerMetrics
from ddm_fed.remote import open_folder
from sites.transport.opening import transport_to
from sites.transport.submit import submit


def by_folder(fed: Federation) -> None:
    for name in SITES:
        send(fed, name, str(fed.inbox))
    admit_arrivals(fed.home, fed.trust)


def by_network(fed: Federation) -> None:
    options = ServerOptions("127.0.0.1:0")
    with serving(fed.home, options, ServerMetrics(), lambda _: False) as server:
        for name in SITES:
            send(fed, name, f"grpcs://127.0.0.1:{server.port}")


def by_bucket(fed: Federation) -> None:
    for name in SITES:
        send(fed, name, f"memory://{fed.path.name}")
    bring(fed, f"memory://{fed.path.name}")


def by_stick(fed: Federation) -> None:
    medium = fed.path / "medium"
    medium.mkdir()
    for name in SITES:
        send(fed, name, str(medium))
    bring(fed, str(medium))


def send(fed: Federation, name: str, to: str) -> None:
    site = fed.site(name)
    submit(site, fed.trust, transport_to(to, site, fed.trust, timeout_s=30))


def bring(fed: Federation, source: str) -> None:
    medium = open_folder(source)
    importer = Importer(fed.home, medium)
    assert {importer.take(entry).state for entry in candidates(medium)[0]} == {"admitted"}


WAYS = (by_folder, by_network, by_bucket, by_stick)


def admitted(fed: Federation) -> dict[str, dict[str, str]]:
    """Returns the digest of every admitted manifest and of the files it is about, by site."""
    found = {}
    for name in SITES:
        item = fed.stored(name)
        found[name] = {"manifest": item.payload_sha256, **item.sha256}
    return found


@pytest.fixture(scope="module")
def ways(stages, tmp_path_factory):
    """What was admitted, by the way it came."""
    base, found = tmp_path_factory.mktemp("ways"), {}
    for way in WAYS:
        fed = stages.released.copy(base / way.__name__, "consortium", *SITES)
        way(fed)
        found[way.__name__] = admitted(fed)
    yield found
    shutil.rmtree(base)


@pytest.mark.parametrize("way", [way.__name__ for way in WAYS])
def test_bundles_are_admitted_with_the_same_digests_whichever_way_they_came(ways, stages, way):
    assert ways[way] == ways["by_folder"] == admitted(stages.admitted)
