"""`[router]` of a plan: which keys go together, and plans of earlier versions."""

import hashlib
import json
import re

import pytest

from ddm_fed.errors import PlanError
from ddm_fed.records import Plan, read_plan_toml

STATISTICS = "epsilon = 2, frequencies = 6"


def plan_of(router, *, data=""):
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ channels = 1, height = 8, width = 8{data} }}
        expert = {{ architecture = "DiT-Nano/2" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ {router} }}
        privacy = {{ max_epsilon = 3 }}
    """)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("covariance = 'full'", "`radius` is missing: only with `components` it may be left out"),
        ("radius = 3, bands = 2", "`bands` belongs to `components`: give both, or neither"),
        (
            "components = 1, covariance = 'diagonal'",
            "`components` gives every Gaussian a full covariance, not a diagonal one",
        ),
        (
            "components = 4, covariance = 'low-rank', rank = 2",
            "`components` gives every Gaussian a full covariance, not a low-rank one",
        ),
        ("components = 1, rank = 2", '`rank` is needed with covariance = "low-rank"'),
        ("components = 1, bands = 17", "less than or equal to 16"),
        ("components = 1, bands = -1", "greater than or equal to 0"),
        ("components = 3", "input should be 1, 2, 4, 8, 16 or 32"),
        ("components = 64", "input should be 1, 2, 4, 8, 16 or 32"),
        ("components = 0", "input should be 1, 2, 4, 8, 16 or 32"),
        ("components = 1, radius = 0", "greater than 0"),
    ],
)
@pytest.mark.parametrize("kind", ["mixture", "heads"])
def test_keys_that_do_not_go_together_are_refused(kind, keys, problem):
    with pytest.raises(PlanError, match=re.escape(problem)):
        plan_of(f"kind = '{kind}', {STATISTICS}, {keys}")


@pytest.mark.parametrize("key", ["components = 1", "bands = 1", "radius = 3"])
def test_keys_of_statistics_are_unknown_to_a_router_of_counts(key):
    with pytest.raises(PlanError, match="unknown key"):
        plan_of(f"kind = 'prior', epsilon = 2, {key}")


@pytest.mark.parametrize(
    ("router", "problem"),
    [
        (
            "frequencies = 60, components = 1, bands = 5",
            "`router.bands` 5 exceeds the 4 frequencies that are left of a channel",
        ),
        (
            "frequencies = 64, components = 1, bands = 1",
            "`router.bands` 1 exceeds the 0 frequencies that are left of a channel",
        ),
        (
            "frequencies = 4, components = 32",
            "`router.components` 32 takes 5 coefficients to divide by",
        ),
    ],
)
def test_more_bands_or_components_than_the_images_have_room_for_are_refused(router, problem):
    with pytest.raises(PlanError, match=re.escape(problem)):
        plan_of(f"kind = 'mixture', epsilon = 2, {router}")


@pytest.mark.parametrize(
    "router",
    [
        "frequencies = 60, components = 1, bands = 4",
        "frequencies = 5, components = 32",
        "frequencies = 6, components = 2, bands = 16, radius = 3",
        "frequencies = 6, components = 8, anchors = [[0.5, 1], [1, 0]]",
    ],
)
def test_plan_with_components_survives_json_with_the_same_bytes(router):
    plan = plan_of(f"kind = 'mixture', epsilon = 2, {router}")
    again = Plan.from_json(plan.to_json(), what="the plan")
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_keys_that_were_left_out_are_in_no_plan():
    router = json.loads(plan_of(f"kind = 'mixture', {STATISTICS}, components = 1").to_json())
    assert not {"radius", "bands"} & set(router["router"])
    router = json.loads(plan_of(f"kind = 'mixture', {STATISTICS}, radius = 3").to_json())
    assert not {"components", "bands"} & set(router["router"])


def test_no_bands_said_or_unsaid_are_the_same_plan():
    said = plan_of(f"kind = 'mixture', {STATISTICS}, radius = 3, bands = 0")
    assert said.to_json() == plan_of(f"kind = 'mixture', {STATISTICS}, radius = 3").to_json()


# written by the version before `components`: a digest that changes orphans every ledger and bundle
OLD = [
    (
        "kind = 'mixture', radius = '2.5'",
        "",
        "1d0f6e4a1762d1b8d093e4bf4293f11bf0a7251289efd0bdb0f2a7ac03c9eb81",
    ),
    (
        "kind = 'mixture', radius = '2.5', covariance = 'low-rank', rank = 2",
        "",
        "d0d7bfe3d98f363f609a7e1f3c09e0a7c601f904666fafe0dc85e448ebe96013",
    ),
    (
        "kind = 'heads', radius = '2.5', centre = -0.25",
        ", conditioning = 'class', classes = ['a', 'b']",
        "e3f9b74529992db17c497367c762e5b3e2f29617bfb87cd4ce81f23dbf961139",
    ),
    (
        "kind = 'mixture', radius = '2.5', max_share = '0.5', anchors = [[0.5, 1], [1, 0]]",
        "",
        "6871e43fb82170e4c21cffa4e20f77366b32cb158525859d4eebb02014374fb0",
    ),
]


@pytest.mark.parametrize(("router", "data", "digest"), OLD)
def test_plans_of_earlier_versions_keep_their_digests(router, data, digest):
    plan = plan_of(f"{STATISTICS}, {router}", data=data)
    assert hashlib.sha256(plan.to_json()).hexdigest() == digest


def test_release_of_more_numbers_than_can_be_is_refused_with_their_count():
    names = ", ".join(f'"c{index}"' for index in range(40))
    with pytest.raises(PlanError, match="numbers, at most"):
        read_plan_toml(f"""
            federation = "test"
            expires_at = 2036-01-01T00:00:00Z
            [data]
            channels = 3
            height = 32
            width = 32
            conditioning = "class"
            classes = [{names}]
            [expert]
            architecture = "mixture"
            [training]
            steps = 1
            batch_size = 1
            [router]
            kind = "mixture"
            epsilon = 2
            frequencies = 200
            components = 32
            [privacy]
            max_epsilon = 3
        """)
