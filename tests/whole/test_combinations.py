"""docs/combinations.md held to its word: every row, in every space, by the real commands."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from captions import write_clip
from combinations import (
    CLASSES,
    FEW,
    MIXTURE,
    SITES,
    SMALL_NETWORK,
    SPACES,
    Federation,
    Space,
    likeness,
    mean_likeness,
    pictures,
    refused,
    table,
)
from commands import done_here as done
from commands import here
from latents import make_folder
from scipy.stats import spearmanr

from ddm_fed.bundle.verify import EXPERT_FILE, HEAD_FILE, ROUTER_FILE
from ddm_fed.distillation.lessons import log_posterior_of_images
from ddm_fed.embedding import ClipEmbedder
from ddm_fed.ensemble.load import load_ensemble, load_releases
from ddm_fed.flows import ClassCondition
from ddm_fed.router import centroids_spec, planned_centroid_router

pytestmark = pytest.mark.processes
ONE, TWO = range(2)  # among the members under the first plan
BY_NAME = {"one": 0, "three": 1, "two": 2}  # under the second
BOAT = "a boat on a river"
ROUTED = ("--strategy", "sticky-then-routed")
BY_SHARES = ("by-shares", "--router", "prior")
BY_MIXTURE = ("by-mixture", "--router", "mixture", "--attribution")
Check = Callable[[Federation], None]


NAMES, TABLE = table()


# --- what is looked at; from the first to the last, on one federation ---


def trains_with_noise(fed: Federation) -> None:
    one, two = (bundle.submission.privacy for bundle in fed.verified("ensemble").bundles)
    assert one.expert_is_private
    assert one.sgd is not None
    assert one.sgd.self_test == "passed"
    assert one.sgd.steps_computed_again
    entry = fed.ledger("one")["expert"]
    assert entry["mechanism"] == "dp-sgd"
    assert (entry["event"]["steps"], entry["event"]["sampling_rate"]) == (2, "0.25")
    assert two.sgd is None
    assert "expert" not in fed.ledger("two")
    assert float(two.releases_epsilon) < float(one.releases_epsilon) <= 60


def learns_central_images(fed: Federation) -> None:
    assert fed.ledger("one")["central"]["event"]["steps"] == 1
    assert "central" not in fed.ledger("two")
    facts = fed.verified("ensemble").bundles[ONE].submission.privacy.sgd
    assert facts is not None
    assert facts.central is not None
    # two steps with noise would leave noise
    drawn = fed.sample("ensemble", *BY_SHARES)
    assert mean_likeness(fed, drawn, ONE) > 0.6


def is_its_mixture(fed: Federation) -> None:
    bundle = fed.verified("ensemble").bundles[TWO]
    assert bundle.submission.expert.architecture == "mixture"
    assert EXPERT_FILE not in bundle.files
    drawn = fed.sample("ensemble", *BY_SHARES)
    assert drawn.diffused.shape == (48, *fed.space.shape)
    assert drawn.arrays["images"].shape == (48, 1, fed.space.side, fed.space.side)
    assert mean_likeness(fed, drawn, TWO) > 0.7


def adds_to_its_mixture(fed: Federation) -> None:
    bundle = fed.verified("second").bundles[ONE]
    assert bundle.submission.expert.architecture == "mixture+DiT-Nano/4"
    assert {EXPERT_FILE, ROUTER_FILE} <= set(bundle.files)
    assert not bundle.submission.privacy.expert_is_private
    # a network of two steps alone would leave noise
    assert mean_likeness(fed, fed.sample("second", "of-second"), ONE) > 0.5


def reads_two_streams(fed: Federation) -> None:
    bundle = fed.verified("second").bundles[BY_NAME["two"]]
    assert bundle.submission.expert.architecture == "MMDiT-Nano/4"
    assert fed.sample("second", "of-second").of(BY_NAME["two"]).isfinite().all()


def convolves(fed: Federation) -> None:
    bundle = fed.verified("second").bundles[BY_NAME["three"]]
    assert bundle.submission.expert.architecture == third_of(fed.space)
    assert fed.sample("second", "of-second").of(BY_NAME["three"]).isfinite().all()


def moves_images(fed: Federation) -> None:
    assert fed.verified("second").trust.plan.training.augmentation == ("translate",)


def draws_by_share(fed: Federation) -> None:
    drawn = fed.sample("ensemble", *BY_SHARES)
    assert sum(drawn.summary["site_counts"].values()) == 48
    assert min(drawn.summary["intended_shares"].values()) > 0.3
    said = fed.refused_sample("ensemble", "--router", "prior", "--attribution")
    assert "--attribution" in said


def compares(fed: Federation) -> None:
    found = compared(fed)
    wanted = {"prior", "mixture", "heads of the ensemble", str(fed.base / "replay")}
    wanted |= {str(fed.base / "hybrid")} | (set() if fed.space.latent else {"centroid"})
    assert set(found) == wanted
    assert found["prior"][0] == pytest.approx(np.log(2), abs=0.05)


def redraws_by_mixtures(fed: Federation) -> None:
    assert compared(fed)["mixture"] != compared(fed)["prior"]
    always = ("--router", "mixture", "--strategy", "per-step")
    drawn = fed.sample("ensemble", "per-step", *always)
    assert set(drawn.summary["expert_calls"]) == set(SITES)
    assert not np.array_equal(drawn.diffused, fed.sample("ensemble", *BY_MIXTURE).diffused)


def learns_apart(fed: Federation) -> None:
    verified = fed.verified("ensemble")
    assert verified.record.router == "heads"
    for name, bundle in zip(SITES, verified.bundles, strict=True):
        assert HEAD_FILE in bundle.files
        assert bundle.submission.privacy.head_is_private
        assert fed.ledger(name)["head"]["mechanism"] == "dp-sgd"
    assert compared(fed)["heads of the ensemble"] != compared(fed)["prior"]


def learns_from_samples(fed: Federation) -> None:
    assert min(compared(fed)[str(fed.base / "replay")]) < 0.6


def learns_from_both(fed: Federation) -> None:
    assert min(compared(fed)[str(fed.base / "hybrid")]) < 0.6
    fed.coord("assemble", fed.base / "with-hybrid", "--router", fed.base / "hybrid")
    built = fed.verified("with-hybrid").record.built
    assert built is not None
    assert built.network is not None
    drawn = fed.sample("with-hybrid", "by-hybrid", *ROUTED, "--attribution")
    assert drawn.summary["router"] == "hybrid"


def compares_embeddings(fed: Federation) -> None:
    assert "router-centroids" in fed.ledger("one")
    routed = ("--router", "centroid", "--strategy", "sticky-then-routed-0.4")
    if fed.space.conditioning == "text":
        text = a_text_of(fed, ONE)
        words = (*fed.at("ensemble"), text, *fed.embedder, "--json")
        wanted = json.loads(done("ddm-coord", "router", "prompt", *words).out)
        # the text encoder is the embedder, and nobody names it twice
        drawn = fed.sample("ensemble", "prompted", *routed, "--prompt", text)
        assert drawn.summary["intended_shares_of_prompts"] == pytest.approx(wanted, abs=0.01)
        assert wanted["one"] > drawn.summary["intended_shares"]["one"] + 0.2
        assert drawn.summary["site_counts"]["one"] > 48 * (wanted["one"] - 0.25)
        assert not any("whatever the prompt" in note for note in drawn.summary["notes"])
    else:
        assert "--embedder-weights" in fed.refused_sample("ensemble", *routed)
        drawn = fed.sample("ensemble", "embedded", *routed, *fed.embedder, "--attribution")
        assert np.allclose(drawn.arrays["attribution"].sum(1), 1, atol=1e-5)
        assert compared(fed)["centroid"] != compared(fed)["mixture"]


def a_text_of(fed: Federation, site: int) -> str:
    """The text, of some, that is most like the images of one site to a CLIP of drawn weights."""
    verified = fed.verified("ensemble")
    plan, texts = verified.trust.plan, [f"picture {number}" for number in range(20)]
    spec = centroids_spec(plan)
    embedder = ClipEmbedder.open(fed.clip, spec.weights_sha256)
    router = planned_centroid_router(plan, load_releases(verified), embedder)
    return texts[int(router.log_prior_of_texts(embedder.texts(texts))[:, site].argmax())]


def attributes(fed: Federation) -> None:
    drawn = fed.sample("ensemble", *BY_MIXTURE)
    parts = drawn.arrays["attribution"]
    assert np.allclose(parts.sum(1), 1, atol=1e-5)
    # what the router says of the images that came of it, with releases whose noise is by chance
    ensemble = load_ensemble(fed.verified("ensemble"), router="mixture")
    asked = (
        ClassCondition(torch.from_numpy(drawn.arrays["labels"]))
        if "labels" in drawn.arrays
        else None
    )
    whose = log_posterior_of_images(ensemble, drawn.diffused, asked, seed=0).exp()[:, TWO]
    assert spearmanr(parts[:, TWO], whose).statistic > 0.5


def asks_for_a_class(fed: Federation) -> None:
    one, other = (
        fed.sample("ensemble", f"of-{name}", "--class", name, "--router", "prior")
        for name in CLASSES
    )
    for site in (ONE, TWO):
        assert float(other.of(site).mean() - one.of(site).mean()) > 0.1 or fed.space.latent
        assert likeness(one.of(site), other.of(site)) < 0.999


def asks_by_captions(fed: Federation) -> None:
    one = fed.sample("ensemble", *BY_SHARES)
    swapped = [*("--prompt", "a boat on a river"), *("--prompt", "a bright picture")]
    other = fed.sample("ensemble", "swapped", "--router", "prior", *swapped)
    changed = (one.diffused != other.diffused).flatten(1).any(1).numpy()
    of_one, first = one.arrays["sites"] == ONE, one.arrays["prompts"] == 0
    assert changed[of_one & first].all()  # its network reads captions
    assert not changed[~of_one].any()  # a mixture says the same
    assert not changed[~first].any()


def guides(fed: Federation) -> None:
    plain = fed.sample("ensemble", *BY_SHARES)
    guided = fed.sample("ensemble", "guided", "--router", "prior", "--guidance", 3)
    assert not np.array_equal(plain.diffused, guided.diffused)


def is_judged(fed: Federation) -> None:
    fed.sample("ensemble", *BY_MIXTURE)
    images = ("--real", fed.base / "held.npz", "--train", fed.base / "one.npz")
    few = ("--out", fed.base / "judged", "--training-steps", 10, "--json")
    report = json.loads(done("ddm-coord", "evaluate", fed.base / "by-mixture", *images, *few).out)
    assert report["inputs"]["shape"] == [1, fed.space.side, fed.space.side]
    assert {"shares", "memorization"} <= set(report["results"])
    labelled = fed.space.conditioning == "class"
    for figure in ("fidelity", "tstr", "agreement"):
        assert (figure in report["results"]) == labelled
        assert (figure in report["left_out"]) != labelled


def is_audited(fed: Federation) -> None:
    data = ("--data", fed.base / "one.npz", "--controls", fed.base / "held.npz")
    few = ("--canaries", 100, "--training-steps", 1, "--json")
    options = (*data, *few, *fed.coding, *fed.texts, *fed.embedder)
    found = json.loads(fed.site("one", "audit", *options).out)
    assert not found["violates"]
    passed = {finding["name"] for finding in (*found["mechanism"], *found["releases"])}
    # what an image and its caption, or its latent, add to a step is clipped as one
    assert {"sensitivity, all clipped", "steps of a training, computed again"} <= passed
    assert {"noise of the release: location", "expected number of units"} <= passed
    assert found["membership"]["members"] == 48
    assert found["nearest"]["pairs"] > 0


def forgets_a_site(fed: Federation) -> None:
    fed.coord("remove", "two", "--out", fed.base / "less", "--reason", "consent withdrawn")
    assert [bundle.site for bundle in fed.verified("less").bundles] == ["one"]
    drawn = fed.sample("less", "of-one", "--router", "mixture", "--attribution")
    assert drawn.summary["site_counts"] == {"one": 48}
    assert drawn.arrays["attribution"].shape == (48, 1)
    stale = ("assemble", fed.base / "stale", "--router", fed.base / "hybrid")
    assert "stale" in refused("ddm-coord", *stale, "--coordinator", fed.hub)
    known = ("verify", *fed.at("ensemble"), "--published", fed.published)
    said = here("ddm-coord", *known)
    assert "stale" in (said.err + said.out).lower()


def compared(fed: Federation) -> dict[str, list[float]]:
    """What `router compare` finds of every router: mean -log p(site) at each time."""
    file = fed.base / "compared.json"
    if not file.exists():
        for kind in ("replay", "hybrid"):
            made = ("--kind", kind, "--out", fed.base / kind, *FEW, *SMALL_NETWORK)
            done("ddm-coord", "router", "build", *fed.at("ensemble"), *made)
        built = ("--router", fed.base / "replay", "--router", fed.base / "hybrid")
        words = (*fed.at("ensemble"), *built, *FEW, *fed.embedder, "--json")
        file.write_text(done("ddm-coord", "router", "compare", *words).out)
    found = json.loads(file.read_text())
    return {name: [at["nll"] for at in times] for name, times in found.items()}


def third_of(space: Space) -> str:
    """What the third site trains: a network that is no transformer, where that can be."""
    if space.conditioning == "text":
        return "DiT-Nano/4-single"
    return "UNet-Nano" if space.conditioning == "class" else "Conv-Nano/2"


FIRST: dict[str, Check] = {
    "training with noise ([privacy.sgd])": trains_with_noise,
    "central images ([privacy.sgd.central])": learns_central_images,
    "expert mixture": is_its_mixture,
    "router prior": draws_by_share,
    "sample --attribution": attributes,
    "router compare": compares,
    "router mixture": redraws_by_mixtures,
    "router heads": learns_apart,
    "router replay": learns_from_samples,
    "router hybrid": learns_from_both,
    "router centroid": compares_embeddings,
    "sample --class": asks_for_a_class,
    "sample --prompt": asks_by_captions,
    "sample --guidance": guides,
    "evaluate": is_judged,
    "ddm-site audit": is_audited,
    "removal of a site": forgets_a_site,
}
SECOND: dict[str, Check] = {
    "expert mixture+DiT": adds_to_its_mixture,
    "expert MMDiT": reads_two_streams,
    "expert UNet, Conv": convolves,
    "training.augmentation": moves_images,
}


# --- what is refused, and why ---


def refuses_plan(fed: Federation, text: str, why: str) -> None:
    (fed.base / "wrong.toml").write_text(text)
    said = refused("ddm-coord", "publish", fed.base / "wrong.toml", "--coordinator", fed.hub)
    assert "error[DDM101]" in said
    assert why in said


def refuses_networks_without_tokens(fed: Federation) -> None:
    for name in ("UNet-Nano", "Conv-Nano/2"):
        refuses_plan(fed, fed.plan_text([name], MIXTURE), "attends to no tokens")


def refuses_moved_latents(fed: Federation) -> None:
    moved = fed.plan_text(["DiT-Nano/4"], MIXTURE, training='augmentation = ["translate"]')
    refuses_plan(fed, moved, "a moved latent is not the latent of a moved image")


def refuses_embedded_latents(fed: Federation) -> None:
    text = fed.plan_text(["DiT-Nano/4"], MIXTURE)
    with pytest.raises(AssertionError, match=r"--embedder: .* diffuses latents"):
        fed.centroids(text)
    of_pixels = Federation.__new__(Federation)
    of_pixels.__dict__ |= {**vars(fed), "_data": fed.data_lines(latent=False)}
    table = of_pixels.centroids(of_pixels.plan_text(["DiT-Nano/4"], MIXTURE))
    refuses_plan(fed, text + table, "embed pixels, and this plan diffuses latents")


def refuses_what_pools_images(fed: Federation) -> None:
    words = ("assemble", fed.base / "pooled", "--router", "pooled", "--coordinator", fed.hub)
    assert "neither a router nor a folder" in refused("ddm-coord", *words)


def refuses_classes(fed: Federation) -> None:
    said = fed.refused_sample("ensemble", "--class", "dark")
    assert "--class dark is not in the plan" in said
    assert ("give --prompt instead" in said) == (fed.space.conditioning == "text")


def refuses_captions(fed: Federation) -> None:
    said = fed.refused_sample("ensemble", "--prompt", BOAT, "--text-encoder", fed.clip)
    assert "--prompt and --text-encoder are for captions" in said


def refuses_guidance(fed: Federation) -> None:
    assert "--guidance 3 needs classes" in fed.refused_sample("ensemble", "--guidance", 3)


REFUSED: dict[str, Check] = {
    "expert UNet, Conv": refuses_networks_without_tokens,
    "training.augmentation": refuses_moved_latents,
    "router centroid": refuses_embedded_latents,
    "router pooled": refuses_what_pools_images,
    "sample --class": refuses_classes,
    "sample --prompt": refuses_captions,
    "sample --guidance": refuses_guidance,
}


# --- all of it ---


def test_table_names_every_space_and_nothing_that_is_not_looked_at():
    assert [space.name for space in SPACES] == NAMES
    for row, cells in TABLE.items():
        assert set(cells.values()) <= {"run", "refused"}, row
        for said, checks in (("run", FIRST | SECOND), ("refused", REFUSED)):
            assert said not in cells.values() or row in checks, row
    assert set(TABLE) == {*FIRST, *SECOND, *REFUSED}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An autoencoder of such pictures, without deviations."""
    folder, side = tmp_path_factory.mktemp("trained"), 16
    public = np.concatenate([pictures(site, side, 9)[0] for site in (ONE, TWO)])
    np.savez(folder / "public.npz", images=public)
    words = ("autoencoder", "train", folder / "public.npz", "--out", folder / "coder")
    size = ("--pixels", side, "--factor", 2, "--channels", 2, "--width", 8, "--kind", "tiny")
    few = ("--steps", 80, "--batch-size", 32, "--learning-rate", 0.01)
    done("ddm-coord", *words, *size, *few)
    return folder / "coder"


@pytest.fixture
def coder(space, request, tmp_path) -> Path | None:
    """The space's autoencoder: the trained one where kinds are told apart by how bright they are.

    The other has drawn weights, and deviations.
    """
    if not space.latent:
        return None
    if space.conditioning == "none":
        return make_folder(tmp_path / "drawn", seed=1)
    found: Path = request.getfixturevalue("trained")
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_space_does_what_the_table_says(space, clip, coder, tmp_path):
    fed = Federation(tmp_path, space, clip, coder)
    fed.first_plan()
    looked_at(fed, FIRST)
    fed.second_plan(third_of(space))
    looked_at(fed, SECOND)
    looked_at(fed, REFUSED)


def looked_at(fed: Federation, checks: dict[str, Check]) -> None:
    """Makes the checks of this space, and says which one failed."""
    said = "refused" if checks is REFUSED else "run"
    for row, check in checks.items():
        if TABLE[row][fed.space.name] != said:
            continue
        try:
            check(fed)
        except AssertionError as error:
            error.add_note(f"{row}: {said}, in {fed.space.name}")
            raise
