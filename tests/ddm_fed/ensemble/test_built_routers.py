"""Routers made from the experts' samples: built, signed into an ensemble, refused where stale."""

import json
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from federation import SITES, flip, forge, snapshot
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from coordinator.cli.main import app
from coordinator.ensembles.assemble import assemble
from ddm_fed.ensemble.folder import STATEMENT_FILE, verify_ensemble
from ddm_fed.ensemble.load import frequencies_seen, load_ensemble, load_router
from ddm_fed.ensemble.replay import BuildOptions, build_from_samples
from ddm_fed.ensemble.router_folder import read_built, write_built
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.errors import OptionError, RefusedError, StateError
from ddm_fed.records import (
    BuiltRouter,
    EnsembleRecord,
    RouterNetworkSpec,
    RouterTransformerSpec,
)

A, B, C = SITES
NETWORK = RouterNetworkSpec(frequencies=16, width=16, depth=1, steps=20, batch_size=32)
TRANSFORMER = RouterTransformerSpec(architecture="DiT-Nano/4", steps=5, batch_size=32)
MADE = {
    "mixture": ("mixture", None),
    "replay": ("replay", NETWORK),
    "hybrid": ("hybrid", NETWORK),
    "replay of a transformer": ("replay", TRANSFORMER),
    "hybrid of a transformer": ("hybrid", TRANSFORMER),
}


def options(made, **changed):
    kind, network = MADE.get(made, (made, None))
    chosen = {"samples_per_site": 24, "solver_steps": 2, "seed": 3, "network": network}
    return BuildOptions(kind=kind, **(chosen | changed))


@pytest.fixture(scope="module")
def verified(stages):
    return verify_ensemble(stages.ensemble, stages.admitted.root)


@pytest.fixture(scope="module")
def built(verified, tmp_path_factory):
    """A folder of a router of every kind."""
    base = tmp_path_factory.mktemp("routers")
    for made in MADE:
        write_built(base / made, build_from_samples(verified, options(made)))
    return base


def states():
    generator = torch.Generator().manual_seed(5)
    x_t = torch.randn((6, 1, 8, 8), generator=generator)
    return x_t, torch.tensor([0.02, 0.3, 0.5, 0.71, 0.9, 1.0])


@pytest.mark.parametrize("made", MADE)
def test_built_router_is_signed_into_an_ensemble_that_verifies_and_samples(
    made, copy_of, built, scratch
):
    fed, kind = copy_of("admitted"), MADE[made][0]
    target = scratch / "second"
    assemble(fed.home, target, router=read_built(built / made), without=())
    verified = verify_ensemble(target, fed.root)
    assert verified.record.built.network == MADE[made][1]
    assert verified.record.router == kind
    assert verified.record.built.submissions == tuple(
        member.submission_sha256 for member in verified.record.members
    )
    router, (x_t, t) = load_router(verified), states()
    found = router.log_posterior(x_t, t, None)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(6).double())
    plain = load_router(verified, "mixture" if kind != "mixture" else "prior")
    assert not torch.equal(found, plain.log_posterior(x_t, t, None))
    load_ensemble(verified).require(Strategy.parse("sticky-then-routed"))
    # the plan's 4 frequencies, and the network's 16: of a hybrid below its switch, .7
    seen = {
        "mixture": (4, 4),
        "replay": (16, 16),
        "hybrid": (16, 4),
        "replay of a transformer": (64, 64),
        "hybrid of a transformer": (64, 4),
    }[made]
    assert (frequencies_seen(verified, None, 0.5), frequencies_seen(verified, None, 1.0)) == seen
    assert frequencies_seen(verified, "mixture", 1.0) == 4
    assert frequencies_seen(verified, "prior", 1.0) == 0


def test_same_options_build_the_same_router(verified):
    first, second = (build_from_samples(verified, options("hybrid")) for _ in range(2))
    assert first.record == second.record
    for name, value in first.tensors.items():
        assert torch.equal(value, second.tensors[name]), name


def test_hybrid_is_the_mixture_above_its_switch_and_the_network_below(verified):
    made = {
        kind: build_from_samples(verified, options(kind, calibrate=False))
        for kind in ("replay", "hybrid")
    }
    from ddm_fed.ensemble.load import load_releases
    from ddm_fed.router import restore_router

    plan, releases = verified.trust.plan, load_releases(verified)
    restored = {
        kind: restore_router(plan, item.record, item.tensors, releases)
        for kind, item in made.items()
    }
    x_t, t = states()
    found = restored["hybrid"].log_posterior(x_t, t, None)
    low = t < 0.7
    mixture = load_router(verified, "mixture").log_posterior(x_t, t, None)
    assert torch.equal(found[~low], mixture[~low])
    replay = restored["replay"].log_posterior(x_t, t, None)
    torch.testing.assert_close(found[low], replay[low], rtol=0, atol=1e-6)


def test_parts_of_a_calibrated_hybrid_are_calibrated_each_by_itself(verified):
    from ddm_fed.ensemble.load import load_releases
    from ddm_fed.router import restore_router

    made = build_from_samples(verified, options("hybrid"))
    assert made.record.knots == tuple(sorted(made.record.knots))
    assert Decimal("0.693") in made.record.knots
    assert made.record.switch in made.record.knots
    plan, releases = verified.trust.plan, load_releases(verified)
    knots = torch.tensor([float(knot) for knot in made.record.knots])
    x_t = states()[0]
    for changed, same in ((knots >= 0.7, 0.695), (knots < 0.7, 0.7)):
        moved = dict(made.tensors)
        for name in ("calibration.log_temperature", "calibration.bias"):
            value = moved[name].clone()
            value[changed] += torch.randn(value[changed].shape, generator=torch.Generator())
            moved[name] = value
        found = [
            restore_router(plan, made.record, tensors, releases).log_posterior(
                x_t, torch.full((len(x_t),), same), None
            )
            for tensors in (made.tensors, moved)
        ]
        assert torch.equal(*found)


def test_router_of_other_experts_is_stale_and_refused(copy_of, built, scratch):
    fed = copy_of("admitted")
    before = snapshot(fed.path)
    with pytest.raises(StateError, match=r"is stale: it was made from samples of 3 experts"):
        assemble(fed.home, scratch / "less", router=read_built(built / "replay"), without=[B])
    assert not (scratch / "less").exists()
    assert snapshot(fed.path) == before


def with_router(copy_of, built, scratch, kind="replay"):
    fed = copy_of("admitted")
    assemble(fed.home, scratch / "second", router=read_built(built / kind), without=())
    return fed, scratch / "second"


def test_router_file_with_one_flipped_bit_is_refused(copy_of, built, scratch):
    fed, target = with_router(copy_of, built, scratch)
    flip(target / "router.safetensors", -1)
    with pytest.raises(RefusedError, match=r"router\.safetensors"):
        verify_ensemble(target, fed.root)


def test_router_file_that_is_missing_is_refused(copy_of, built, scratch):
    fed, target = with_router(copy_of, built, scratch)
    (target / "router.safetensors").unlink()
    with pytest.raises(RefusedError, match=r"router\.safetensors"):
        verify_ensemble(target, fed.root)


def test_router_file_swapped_between_verification_and_loading_is_never_used(
    copy_of, built, scratch
):
    fed, target = with_router(copy_of, built, scratch)
    verified = verify_ensemble(target, fed.root)
    flip(target / "router.safetensors", -1)
    with pytest.raises(RefusedError, match="changed after it was verified"):
        load_router(verified)


def test_router_that_claims_other_experts_is_refused_even_if_the_coordinator_signs_it(
    copy_of, built, scratch
):
    fed, target = with_router(copy_of, built, scratch)

    def edit(statement):
        statement["predicate"]["built"]["submissions"].reverse()

    forge(target / STATEMENT_FILE, edit, fed.coordinator_key())
    with pytest.raises(RefusedError, match="made from the experts of other members"):
        verify_ensemble(target, fed.root)


def test_learned_router_without_its_record_is_refused(copy_of, built, scratch):
    fed, target = with_router(copy_of, built, scratch)

    def edit(statement):
        statement["predicate"]["built"] = None

    forge(target / STATEMENT_FILE, edit, fed.coordinator_key())
    with pytest.raises(RefusedError, match="is made of samples; `built` is missing"):
        verify_ensemble(target, fed.root)


def test_router_with_other_tensors_than_its_record_says_is_refused_at_assembly(
    copy_of, built, scratch
):
    fed = copy_of("admitted")
    folder = Path(shutil.copytree(built / "replay", scratch / "router"))
    tensors = load_file(folder / "router.safetensors")
    tensors["network.head.bias"] = torch.zeros(7)
    save_file(tensors, folder / "router.safetensors")
    with pytest.raises(RefusedError, match=r"the router is refused: .*network\.head\.bias|tensor"):
        assemble(fed.home, scratch / "bad", router=read_built(folder), without=())
    assert not (scratch / "bad").exists()


def test_router_with_a_value_that_is_not_finite_is_refused_at_assembly(copy_of, built, scratch):
    fed = copy_of("admitted")
    folder = Path(shutil.copytree(built / "replay", scratch / "router"))
    tensors = load_file(folder / "router.safetensors")
    tensors["network.head.bias"][0] = torch.nan
    save_file(tensors, folder / "router.safetensors")
    with pytest.raises(RefusedError, match="NaN"):
        assemble(fed.home, scratch / "bad", router=read_built(folder), without=())


def test_asking_for_a_router_the_ensemble_has_not_says_how_to_get_it(verified):
    with pytest.raises(OptionError) as refused:
        load_router(verified, "replay")
    assert "--router replay: the ensemble has no such router" in refused.value.message
    assert "router build --kind replay" in refused.value.hint


def test_removing_a_site_gives_the_router_of_a_federation_it_never_joined(copy_of, scratch):
    fed = copy_of("admitted")
    assemble(fed.home, scratch / "two", router=None, without=[B])
    first = verify_ensemble(scratch / "two", fed.root)
    assemble(fed.home, scratch / "again", router=None, without=[B])
    second = verify_ensemble(scratch / "again", fed.root)
    made = [build_from_samples(item, options("hybrid")) for item in (first, second)]
    for name, value in made[0].tensors.items():
        assert torch.equal(value, made[1].tensors[name]), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "replay", "network": None}, "replay needs its `network`"),
        ({"kind": "mixture"}, "`network` belongs to replay and hybrid"),
        ({"kind": "hybrid"}, "`switch` belongs to hybrid"),
        ({"switch": Decimal("0.5")}, "`switch` belongs to hybrid"),
        ({"knots": (Decimal("0.5"), Decimal("0.2"))}, "`knots` increase"),
        ({"kind": "mixture", "network": None, "knots": ()}, "is not built from samples"),
    ],
)
def test_record_of_a_router_whose_parts_do_not_fit_is_refused(fields, message):
    sound = {
        "kind": "replay",
        "submissions": ("0" * 64,),
        "samples_per_site": 24,
        "solver_steps": 2,
        "seed": 0,
        "network": NETWORK,
        "knots": (Decimal("0.2"), Decimal("0.5")),
    }
    BuiltRouter(**sound)
    with pytest.raises(ValidationError, match=message):
        BuiltRouter(**(sound | fields))


def test_ensemble_record_says_nothing_of_a_router_that_releases_make(verified):
    assert verified.record.built is None
    assert verified.router_sha256 is None
    EnsembleRecord.from_json(verified.record.to_json(), what="it")


def test_prior_cannot_be_built_from_samples(verified):
    with pytest.raises(OptionError, match="a prior router looks at no image"):
        build_from_samples(verified, options("prior", network=None))


def test_mixture_without_calibration_needs_no_samples(verified):
    with pytest.raises(OptionError, match="without calibration needs no samples"):
        build_from_samples(verified, options("mixture", calibrate=False))


def test_network_that_cannot_be_is_refused_before_images_are_drawn(verified, monkeypatch):
    drawn = []
    monkeypatch.setattr("ddm_fed.ensemble.replay.draw_from_experts", lambda *_: drawn.append(1))
    wide = NETWORK.model_copy(update={"frequencies": 65})
    with pytest.raises(OptionError, match="--frequencies 65"):
        build_from_samples(verified, options("replay", network=wide))
    assert not drawn


def test_network_of_more_frequencies_than_pixels_is_refused(verified):
    wide = NETWORK.model_copy(update={"frequencies": 65})
    with pytest.raises(OptionError, match="--frequencies 65: a channel of these images"):
        build_from_samples(verified, options("replay", network=wide))


def test_transformer_whose_patches_do_not_tile_the_images_is_refused(verified):
    from ddm_fed.router import router_network

    data = verified.trust.plan.data.model_copy(update={"height": 10, "width": 10})
    with pytest.raises(OptionError, match="--network DiT-Nano/4 cuts patches of 4 pixels"):
        router_network(data, TRANSFORMER, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--network", "DiT-Nano/4", "--width", 16), "--width belongs to --network perceptron"),
        (("--network", "UNet-S"), "--network: a router can be a perceptron or DiT-SIZE/PATCH"),
        (("--network", "DiT-Huge/4"), "--network: unknown architecture `DiT-Huge/4`"),
        (("--kind", "mixture", "--network", "DiT-Nano/4"), "--network belongs to the network"),
        (("--kind", "mixture", "--depth", 2), "--depth belongs to the network of --kind replay"),
    ],
)
def test_network_of_a_router_that_cannot_be_is_refused(stages, scratch, words, message):
    done = run(
        *("router", "build", stages.ensemble, "--out", scratch / "router", *words),
        *("--coordinator", stages.admitted.home.path),
    )
    assert isinstance(done.exception, OptionError)
    assert message in done.exception.message
    assert not (scratch / "router").exists()


def test_transformer_is_built_by_its_name(copy_of, stages, scratch):
    fed = copy_of("admitted")
    done = run(
        *("router", "build", stages.ensemble, "--out", scratch / "router", "--steps", 2),
        *("--network", "DiT-Nano/4", "--training-steps", 3, "--samples-per-site", 16),
        *("--coordinator", fed.home.path),
    )
    assert done.exit_code == 0, done.output
    made = read_built(scratch / "router").record.network
    assert (made.architecture, made.steps) == ("DiT-Nano/4", 3)


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments])


def test_commands_build_assemble_and_compare(copy_of, stages, built, scratch):
    fed = copy_of("admitted")
    where = ("--coordinator", fed.home.path)
    small = ("--samples-per-site", 16, "--steps", 2)
    out = scratch / "router"
    done = run(
        *("router", "build", stages.ensemble, "--kind", "hybrid", "--out", out, *where, *small),
        *("--training-steps", 10, "--width", 16, "--depth", 1, "--seed", 7, "--json"),
    )
    assert done.exit_code == 0, done.output
    quality = json.loads(done.stdout)
    assert [row["t"] for row in quality["after"]] == [0.1, 0.3, 0.5, 0.693, 0.7, 0.9]
    assert json.loads((out / "quality.json").read_text()) == quality
    done = run("assemble", scratch / "second", "--router", out, *where)
    assert done.exit_code == 0, done.output
    done = run(
        *("router", "compare", scratch / "second", "--router", out, "--seed", 8, *where, *small),
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) == {
        *("prior", "mixture", "hybrid of the ensemble", str(out))
    }
    done = run(
        *("sample", scratch / "second", "--out", scratch / "drawn", "--count", 4, "--steps", 3),
        *("--no-png", *where),
    )
    assert done.exit_code == 0, done.output
    assert json.loads((scratch / "drawn" / "samples.json").read_text())["router"] == "hybrid"


def test_comparing_with_the_samples_a_router_was_made_from_is_refused(stages, built):
    done = run(
        *("router", "compare", stages.ensemble, "--router", built / "replay", "--seed", 3),
        *("--coordinator", stages.admitted.home.path),
    )
    assert isinstance(done.exception, OptionError)
    assert "cannot judge it" in done.exception.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("assemble", "x", "--router", "replay"), "give the folder"),
        (
            ("assemble", "x", "--router", "centroids"),
            "neither a router nor a folder",
        ),
    ],
)
def test_router_that_is_no_folder_and_no_closed_form_is_wrong_usage(stages, arguments, message):
    done = run(*arguments, "--coordinator", stages.admitted.home.path)
    assert isinstance(done.exception, OptionError)
    assert done.exception.exit_status == 2
    assert message in f"{done.exception.message} {done.exception.hint}"


def test_folder_that_holds_no_router_is_refused(copy_of, scratch):
    fed = copy_of("admitted")
    (scratch / "empty").mkdir()
    done = run(
        *("assemble", scratch / "x", "--router", scratch / "empty"),
        *("--coordinator", fed.home.path),
    )
    assert isinstance(done.exception, StateError)
    assert "router.json is missing" in done.exception.message
