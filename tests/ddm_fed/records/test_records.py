"""Records: one way to write them, strict ways to read them, and plans that people write."""

import json
import re
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from federation import PLAN_TOML, a_plan
from hypothesis import given
from hypothesis import strategies as st

from ddm_fed.errors import MalformedError, PlanError
from ddm_fed.records import (
    DIT_SIZES,
    DitArchitecture,
    EnrolmentRequest,
    ExpertDesign,
    LedgerEntry,
    Plan,
    Roster,
    canonical_json,
    parse_architecture,
    parse_json,
    read_plan_toml,
    require_fit,
    subjects,
)

ROOT = Path(__file__).parents[3]


def request_json(**changed: object) -> bytes:
    fields = {
        "format": 1,
        "site": "hospital-a",
        "root": "sha256:" + "0" * 64,
        "require": ["site"],
        "keys": [{"role": "site", "public_key": "0" * 64}],
        "requested_at": "2026-11-23T00:00:00Z",
    }
    return json.dumps(fields | changed).encode()


def read_request(**changed: object) -> EnrolmentRequest:
    return EnrolmentRequest.from_json(request_json(**changed), what="the request")


def plan_with(old: str, new: str) -> str:
    assert old in PLAN_TOML
    return PLAN_TOML.replace(old, new, 1)


# Canonical JSON


def test_canonical_json_is_sorted_compact_utf8():
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'.encode()


def test_record_json_is_sorted_and_compact():
    data = read_request().to_json()
    values = json.loads(data)
    assert list(values) == sorted(values)
    assert b", " not in data
    assert b": " not in data


def test_record_read_from_loose_json_writes_canonical_json():
    loose = json.dumps(json.loads(request_json()), indent=3).encode()
    assert EnrolmentRequest.from_json(loose, what="x").to_json() == read_request().to_json()


def test_subjects_are_in_the_order_of_their_names():
    found = subjects({"b": "1" * 64, "a": "0" * 64})
    assert [subject.name for subject in found] == ["a", "b"]


def test_equal_records_have_equal_bytes():
    two, same = a_plan(epsilon="epsilon = 2"), a_plan(epsilon="epsilon = 2.0")
    assert two == same
    assert two.to_json() == same.to_json()


def test_duplicate_key_is_named():
    with pytest.raises(MalformedError, match="the file cannot be read: the key `a` appears twice"):
        parse_json(b'{"a":1,"b":2,"a":1}', what="the file")


def test_duplicate_key_in_a_nested_object_is_refused():
    with pytest.raises(MalformedError, match="the key `a` appears twice"):
        parse_json(b'{"x":[{"a":1,"a":1}]}', what="the file")


def test_duplicate_key_spelt_with_an_escape_is_refused():
    with pytest.raises(MalformedError, match="the key `a` appears twice"):
        parse_json(b'{"a":1,"\\u0061":1}', what="the file")


def test_duplicate_key_after_many_others_is_refused_quickly():
    keys = ",".join(f'"{index:x}":0' for index in range(25_000))
    started = time.process_time()
    with pytest.raises(MalformedError, match="the key `61a7` appears twice"):
        parse_json(f'{{{keys},"61a7":0}}'.encode(), what="the file")
    assert time.process_time() - started < 2


def test_largest_integer_is_read():
    assert parse_json(b"[9007199254740991,-9007199254740991]", what="x") == [2**53 - 1, 1 - 2**53]


@given(st.binary(max_size=200))
def test_parse_json_of_any_bytes_refuses_or_reads(data: bytes):
    try:
        value = parse_json(data, what="the file")
    except MalformedError:
        return
    assert json.loads(data) == value


# Strict fields


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("site", "Hospital-A", "should be 1 to 63 of"),
        ("site", "../etc", "should be 1 to 63 of"),
        ("site", "hospital-a\n", "should be 1 to 63 of"),
        ("site", "", "should be 1 to 63 of"),
        ("site", 1, "should be a valid string"),
        ("site", "a" * 64, "should be 1 to 63 of"),
        ("root", "sha256:" + "A" * 64, "should be `sha256:`"),
        ("root", "ed25519:" + "0" * 64, "should be `sha256:`"),
        ("root", "0" * 64, "should be `sha256:`"),
        ("format", 2, "should be 1"),
        ("format", "1", "should be 1"),
        ("requested_at", "2026-11-23T00:00:00", "a date needs a time zone"),
        ("requested_at", "yesterday", "should be a valid datetime"),
        ("requested_at", 1_900_000_000, "should be a valid datetime"),
        ("requested_at", None, "should be a valid datetime"),
    ],
)
def test_record_field_of_the_wrong_form_is_named(field: str, value: object, problem: str):
    with pytest.raises(
        MalformedError, match=f"the request is not a valid EnrolmentRequest: `{field}`: .*{problem}"
    ):
        read_request(**{field: value})


@pytest.mark.parametrize("key", ["A" * 64, "0" * 63, "0" * 64 + "\n"])
@pytest.mark.parametrize("field", ["keys", "replaces"])
def test_public_key_of_the_wrong_form_is_named(field: str, key: str):
    value, name = {
        "keys": ([{"role": "site", "public_key": key}], r"keys\.0\.public_key"),
        "replaces": ([key], r"replaces\.0"),
    }[field]
    with pytest.raises(
        MalformedError,
        match=f"the request is not a valid EnrolmentRequest: `{name}`: .*should be 64 hex digits",
    ):
        read_request(**{field: value})


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"keys": []}, "it brings no key, so it can only add a certificate"),
        (
            {"keys": [], "certificate": "AAAA", "replaces": ["1" * 64]},
            "it brings no key, so it can only add a certificate",
        ),
        ({"certificate": "AAAB" * 343}, "`certificate`: .*at most 1368 characters"),
        ({"certificate": "AAB="}, "`certificate`: it is not canonical base64"),
        ({"certificate": "AA-_"}, "`certificate`: it is not canonical base64"),
        ({"certificate": "AAAA\n"}, "`certificate`: it is not canonical base64"),
        ({"keys": [{"role": "site", "public_key": "1" * 64}] * 2}, "a key is named twice"),
        ({"replaces": ["0" * 64]}, "a key is named twice"),
        ({"replaces": ["1" * 64] * 2}, "a key is named twice"),
        ({"keys": [{"role": "root", "public_key": "1" * 64}]}, r"`keys\.0\.role`"),
        ({"require": []}, "`require"),
        ({"require": ["dpo"]}, "`require"),
        ({"require": ["dpo", "site"]}, "`require"),
        ({"require": ["site", "dpo", "dpo"]}, "`require"),
    ],
)
def test_request_that_contradicts_itself_is_refused(changed: dict, problem: str):
    with pytest.raises(MalformedError, match=problem):
        read_request(**changed)


def test_record_with_unknown_field_is_refused_with_a_suggestion():
    with pytest.raises(MalformedError, match="`sitee`: unknown key, did you mean `site`"):
        read_request(sitee="x")


def test_record_without_a_field_is_refused_by_its_name():
    values = json.loads(request_json())
    del values["root"]
    with pytest.raises(MalformedError, match="`root`: field required"):
        EnrolmentRequest.from_json(canonical_json(values), what="the request")


@pytest.mark.parametrize(
    "moment",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+23:59"],
)
def test_date_beyond_the_calendar_is_refused(moment: str):
    with pytest.raises(MalformedError, match="`requested_at`"):
        read_request(requested_at=moment)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-11-23T02:00:00+02:00", "2026-11-23T00:00:00Z"),
        ("2026-11-23T00:00:00.999Z", "2026-11-23T00:00:00Z"),
        ("0999-01-01T00:00:00Z", "0999-01-01T00:00:00Z"),
    ],
)
def test_date_is_written_as_utc_seconds(written: str, read: str):
    assert json.loads(read_request(requested_at=written).to_json())["requested_at"] == read


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202egpj"])
def test_message_about_an_unknown_key_shows_control_characters_escaped(text: str):
    with pytest.raises(MalformedError) as caught:
        read_request(**{text: 1})
    assert caught.value.message.isprintable()


def test_message_about_a_broken_surrogate_can_be_written_as_utf8():
    with pytest.raises(MalformedError) as caught:
        parse_json(b'{"\\ud800":1,"\\ud800":2}', what="the file")
    assert caught.value.message.encode()


def test_message_about_an_endless_key_is_short():
    with pytest.raises(MalformedError) as caught:
        read_request(**{"k" * 900_000: 1})
    assert len(caught.value.message) < 10_000


@pytest.mark.slow
def test_message_about_many_unknown_keys_is_short():
    with pytest.raises(MalformedError, match="unknown key") as caught:
        read_request(**{f"sit{index:x}": 1 for index in range(20_000)})
    assert len(caught.value.message) < 10_000


def test_record_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        read_request().site = "other"


# Ledger and roster records


def ledger_entry(**event: object) -> bytes:
    return canonical_json(
        {
            "index": 0,
            "previous_sha256": None,
            "recorded_at": "2026-11-23T00:00:00Z",
            "plan_sha256": "0" * 64,
            "purpose": "router-shape",
            "mechanism": "discrete-gaussian",
            "event": {"kind": "gaussian", **event},
        }
    )


@pytest.mark.parametrize(
    "noise", ["0", "-1", "NaN", "Infinity", "-0", "1e400", "0x10", "", "1" * 21]
)
def test_ledger_entry_with_impossible_noise_is_refused(noise: str):
    with pytest.raises(MalformedError, match=r"line 1 .*`event\.noise_multiplier`"):
        LedgerEntry.from_json(ledger_entry(noise_multiplier=noise), what="line 1")


def test_ledger_entry_of_unknown_mechanism_is_refused():
    with pytest.raises(MalformedError, match=r"line 1 .*`event\.kind`.*laplace"):
        LedgerEntry.from_json(ledger_entry(kind="laplace"), what="line 1")


def ranged(public_key: str, **changed: object) -> dict[str, object]:
    return {"public_key": public_key, "from_log_size": 0} | changed


def roster_site(name: str, public_key: str, **changed: object) -> dict[str, object]:
    fields = {
        "name": name,
        "enrolled_at": "2026-11-23T00:00:00Z",
        "policies": [{"require": ["site"], "from_log_size": 0}],
        "keys": [ranged(public_key, role="site")],
    }
    return fields | changed


def roster(**changed: object) -> dict[str, object]:
    fields = {
        "federation": "test",
        "version": 1,
        "previous_sha256": None,
        "issued_at": "2026-11-23T00:00:00Z",
        "expires_at": "2027-11-23T00:00:00Z",
        "root": {"keys": ["2" * 64], "threshold": 1},
        "coordinator": [ranged("3" * 64)],
        "sites": [roster_site("a", "1" * 64), roster_site("b", "4" * 64)],
    }
    return fields | changed


def read_roster(**changed: object) -> Roster:
    return Roster.from_json(canonical_json(roster(**changed)), what="roster 1")


def policies(*sizes: int) -> list[dict[str, object]]:
    return [{"require": ["site"], "from_log_size": size} for size in sizes]


def test_first_roster_may_have_no_sites():
    assert read_roster(sites=[]).sites == ()


def test_roster_round_trip_keeps_record_and_bytes():
    written = read_roster().to_json()
    assert Roster.from_json(written, what="roster 1").to_json() == written


CONTRADICTIONS = {
    "root-is-coordinator": (
        {"root": {"keys": ["3" * 64], "threshold": 1}},
        "a key is listed twice",
    ),
    "coordinator-is-site": ({"coordinator": [ranged("1" * 64)]}, "a key is listed twice"),
    "root-is-site": ({"root": {"keys": ["4" * 64], "threshold": 1}}, "a key is listed twice"),
    "no-previous": ({"version": 2}, "version 1 has no previous roster, and every later one has"),
    "previous-of-first": ({"previous_sha256": "0" * 64}, "version 1 has no previous roster"),
    "version-zero": ({"version": 0}, "greater than or equal to 1"),
    "version-bool": ({"version": True}, "valid integer"),
    "expires-when-issued": (
        {"expires_at": "2026-11-23T00:00:00Z"},
        "it expires before it is issued",
    ),
    "no-root": ({"root": {"keys": [], "threshold": 1}}, "at least 1 item"),
    "root-twice": ({"root": {"keys": ["2" * 64] * 2, "threshold": 2}}, "a root key is listed twi"),
    "threshold-zero": (
        {"root": {"keys": ["2" * 64], "threshold": 0}},
        "greater than or equal to 1",
    ),
    "threshold-high": (
        {"root": {"keys": ["2" * 64], "threshold": 2}},
        "2 of 1 root keys can never sign",
    ),
    "no-coordinator": ({"coordinator": []}, "at least 1 item"),
    "two-coordinators": (
        {"coordinator": [ranged("3" * 64), ranged("5" * 64)]},
        "exactly one coordinator key is active at a time",
    ),
    "coordinator-revoked": (
        {"coordinator": [ranged("3" * 64, revoked_at_log_size=1)]},
        "exactly one coordinator key is active at a time",
    ),
    "revoked-before-it-begins": (
        {"coordinator": [ranged("3" * 64, from_log_size=2, revoked_at_log_size=1)]},
        "a key is revoked before it begins",
    ),
    "compromised-and-active": (
        {"coordinator": [ranged("3" * 64, compromised_since_log_size=1)]},
        "a compromised key has to be revoked too",
    ),
    "negative-size": ({"coordinator": [ranged("3" * 64, from_log_size=-1)]}, "greater than or"),
    "site-without-key": ({"sites": [roster_site("a", "1" * 64, keys=[])]}, "at least 1 item"),
    "site-without-policy": (
        {"sites": [roster_site("a", "1" * 64, policies=[])]},
        "at least 1 item",
    ),
    "policies-fall": (
        {"sites": [roster_site("a", "1" * 64, policies=policies(3, 2))]},
        "policies are not in the order of the log",
    ),
    "policy-without-key": (
        {
            "sites": [
                roster_site(
                    "a", "1" * 64, policies=[{"require": ["site", "dpo"], "from_log_size": 0}]
                )
            ]
        },
        "a policy asks for a key the site does not have",
    ),
}


@pytest.mark.parametrize(("changed", "problem"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_roster_that_contradicts_itself_is_refused(changed: dict, problem: str):
    with pytest.raises(MalformedError, match=f"roster 1 is not a valid Roster: .*{problem}"):
        read_roster(**changed)


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (roster_site("a", "4" * 64), "a site is listed twice"),
        (roster_site("b", "1" * 64), "a key is listed twice"),
        (
            roster_site("b", "4" * 64, keys=[ranged("4" * 64, role=x) for x in ("site", "dpo")]),
            "a key is listed twice",
        ),
    ],
)
def test_roster_that_lists_a_site_or_key_twice_is_refused(second: dict, problem: str):
    with pytest.raises(MalformedError, match=problem):
        read_roster(sites=[roster_site("a", "1" * 64), second])


# Plans


def test_example_plan_is_valid():
    plan = read_plan_toml((ROOT / "examples" / "digits" / "plan.toml").read_text())
    assert (plan.federation, plan.data.shape, plan.router.kind) == ("digits", (1, 8, 8), "mixture")


def test_plan_json_round_trip_keeps_record_and_bytes():
    plan = a_plan()
    again = Plan.from_json(plan.to_json(), what="the plan")
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_plan_toml_and_its_json_are_the_same_plan():
    plan = read_plan_toml((ROOT / "examples" / "digits" / "plan.toml").read_text())
    assert Plan.from_json(plan.to_json(), what="the plan").to_json() == plan.to_json()


def test_toml_float_becomes_the_exact_decimal():
    plan = read_plan_toml(plan_with("batch_size = 16", "batch_size = 16\nlabel_dropout = 0.1"))
    assert plan.training.label_dropout == Decimal("0.1")
    assert b'"label_dropout":"0.1"' in plan.to_json()


@given(digits=st.integers(1, 10**12), places=st.integers(0, 15))
def test_any_decimal_of_a_plan_survives_toml_and_json(digits: int, places: int):
    text = format(Decimal(digits).scaleb(-places), "f")
    plan = read_plan_toml(plan_with("radius = 3", f"radius = {text}"))
    again = Plan.from_json(plan.to_json(), what="the plan")
    assert again.router.radius == Decimal(text)
    assert Decimal(json.loads(again.to_json())["router"]["radius"]) == Decimal(text)


@pytest.mark.parametrize(
    ("old", "misspelt", "near"),
    [
        ("steps = 3", "learning_rat", "learning_rate"),
        ("channels = 1", "widht", "width"),
        ("max_epsilon = 3", "detla", "delta"),
        ("radius = 3", "frequncies", "frequencies"),
    ],
)
def test_plan_with_misspelt_key_is_refused_with_a_suggestion(old: str, misspelt: str, near: str):
    with pytest.raises(PlanError, match=f"{misspelt}`: unknown key, did you mean `{near}`"):
        read_plan_toml(plan_with(old, f"{old}\n{misspelt} = 1"))


def test_plan_with_misspelt_table_is_refused_with_a_suggestion():
    with pytest.raises(PlanError, match="`privcy`: unknown key, did you mean `privacy`"):
        read_plan_toml(plan_with("[privacy]", "[privcy]"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"DiT-Nano/2"', '"DiT-nano/2"', "`DiT-nano/2`, did you mean `DiT-Nano/2`"),
        ('"DiT-Nano/2"', '"mixture+UNett-S"', "`UNett-S`, did you mean `UNet-S`"),
        (
            'kind = "mixture"',
            'kind = "mixtur"',
            "router.kind`: `mixtur` .*, did you mean `mixture`",
        ),
        ("steps = 3", 'steps = 3\nschedule = "cosin"', "`cosin` .*did you mean `cosine`"),
        ('kind = "mixture"', 'kind = "wrong"', "`wrong` is not one of 'prior', 'mixture', [^?]*$"),
    ],
)
def test_plan_with_a_misspelt_word_of_a_list_is_refused_with_a_suggestion(old, new, said):
    with pytest.raises(PlanError, match=said):
        read_plan_toml(plan_with(old, new))


def test_plan_with_unknown_key_far_from_any_lists_the_known_ones():
    with pytest.raises(PlanError, match=r"`privacy\.zzz`: unknown key, known are .*max_epsilon"):
        read_plan_toml(PLAN_TOML + "zzz = 1\n")


def test_plan_with_several_problems_names_them_all_at_once():
    text = PLAN_TOML.replace("steps = 3", "steps = 0").replace("channels = 1", "channels = 2")
    with pytest.raises(PlanError) as caught:
        read_plan_toml(text.replace("DiT-Nano/2", "DiT-Huge/2"), name="our.toml")
    message = caught.value.message
    assert message.startswith("our.toml is not a valid plan: ")
    for name in ("`data.channels`", "`expert.architecture`", "`training.steps`"):
        assert name in message


def test_plan_with_problems_behind_others_names_them_too_each_on_a_line():
    text = PLAN_TOML
    for old, new in (
        ("channels = 1", "channels = 2"),  # three fields that do not hold
        ("steps = 3", 'steps = 0\ntime_sampling = "uniform"\ntime_scale = 2'),  # and one behind it
        ('federation = "test"', 'federation = "Test!"'),
        ("epsilon = 2", "epsilon = 9"),  # above max_epsilon
        ("frequencies = 4", "frequencies = 65"),  # needs `data.channels`: cannot be judged yet
        ("height = 8", "height = 7"),  # does not tile
        ("max_epsilon = 3", 'max_epsilon = 3\nmust_be_private = ["expert"]'),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(PlanError) as caught:
        read_plan_toml(text)
    details = caught.value.details
    for words in (
        "`data.channels`: ",
        "`training.steps`: ",
        "`federation`: ",
        "`training`: `time_location` and `time_scale`",
        "`document`: `router.epsilon` 9 exceeds `privacy.max_epsilon` 3",
        "which does not tile 7 x 8 images",
        "`document`: `privacy.must_be_private` names the expert",
    ):
        assert sum(words in line for line in details) == 1, (words, details)
    assert all("frequencies" not in line or "exceeds the 56" in line for line in details)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("width = 8", 'width = 8\nconditioning = "class"', "`classes` is needed with conditioning"),
        ("width = 8", 'width = 8\nclasses = ["x"]', "`classes` is needed with conditioning"),
        (
            "width = 8",
            'width = 8\nconditioning = "class"\nclasses = ["x", "x"]',
            "`classes` holds a name twice",
        ),
        ("DiT-Nano/2", "DiT-Nano/3", "unknown architecture `DiT-Nano/3`"),
        ("DiT-Nano/2", "UNet", "unknown architecture `UNet`"),
        ("DiT-Nano/2", "DiT-Nano/2-rope-single", "unknown architecture `DiT-Nano/2-rope-single`"),
        ("DiT-Nano/2", "MMDiT-XL/2", "unknown architecture `MMDiT-XL/2`"),
        ('"DiT-Nano/2"', '["DiT-Nano/2", "DiT-Nano/2"]', "it holds a name twice"),
        ('"DiT-Nano/2"', "[]", "`expert.architecture`"),
        ('"DiT-Nano/2"', '"DiT-Nano/2"\nprediction = ["speed"]', "`expert.prediction"),
        ('"DiT-Nano/2"', '"DiT-Nano/2"\nbase = { sha256 = "f" }', "`expert.base.sha256`"),
        ("steps = 3", "steps = 3\nema_half_lives = [9, 9]", "it holds a value twice"),
        ("steps = 3", "steps = 3\nema_half_lives = []", "`training.ema_half_lives`"),
        ("steps = 3", "steps = 3\ntime_shift = 0", "`training.time_shift`"),
        ("height = 8", "height = 7", "patches of 2 pixels, which does not tile 7 x 8 images"),
        ("width = 8", "width = 9", "patches of 2 pixels, which does not tile 8 x 9 images"),
        ("frequencies = 4", "frequencies = 65", "`router.frequencies` exceeds the 64 pixels"),
        ("epsilon = 2", "epsilon = 3.5", "`router.epsilon` 3.5 exceeds `privacy.max_epsilon` 3"),
        ("epsilon = 2", "epsilon = 0", "greater than or equal to 0.001"),
        ("epsilon = 2", "epsilon = -1", "greater than or equal to 0.001"),
        ("epsilon = 2", "epsilon = inf", "finite number"),
        ("epsilon = 2", "epsilon = nan", "finite number"),
        ("epsilon = 2", "epsilon = true", "`router.epsilon`"),
        ("steps = 3", "steps = 3.0", "`training.steps`: input should be a valid integer"),
        ("steps = 3", 'steps = "3"', "`training.steps`: input should be a valid integer"),
        ("steps = 3", "steps = true", "`training.steps`: input should be a valid integer"),
        ('"mixture"', '"pooled"', "`router.kind`: `pooled` is not one of"),
        ('"test"', '"Test Federation"', "`federation`"),
        ("max_epsilon = 3", "max_epsilon = 3\ndelta = 1", "`privacy.delta`"),
        ("max_epsilon = 3", 'max_epsilon = 3\nunit = "hospital"', "`privacy.unit`"),
    ],
)
def test_plan_that_contradicts_itself_is_refused(old: str, new: str, problem: str):
    with pytest.raises(PlanError, match=re.escape(problem)):
        read_plan_toml(plan_with(old, new))


def test_plan_of_router_epsilon_equal_to_the_maximum_is_valid():
    assert read_plan_toml(plan_with("epsilon = 2", "epsilon = 3")).router.epsilon == 3


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_plan_says_whether_epsilon_protects_images_or_patients(unit: str):
    plan = read_plan_toml(plan_with("max_epsilon = 3", f'max_epsilon = 3\nunit = "{unit}"'))
    assert plan.privacy.unit == unit


def test_plan_that_says_nothing_of_a_unit_protects_images():
    assert read_plan_toml(PLAN_TOML).privacy.unit == "image"


def test_plan_that_is_not_toml_is_refused_by_its_name():
    with pytest.raises(PlanError, match=r"our\.toml is not TOML"):
        read_plan_toml("federation = ", name="our.toml")


EXPIRY = "2036-01-01T00:00:00Z"


def test_plan_with_bare_date_means_its_first_second_in_utc():
    plan = read_plan_toml(plan_with(EXPIRY, "2030-05-06"))
    assert plan.expires_at == datetime(2030, 5, 6, tzinfo=UTC)


def test_plan_with_offset_date_is_turned_to_utc():
    plan = read_plan_toml(plan_with(EXPIRY, "2030-05-06T02:00:00+02:00"))
    assert plan.expires_at == datetime(2030, 5, 6, tzinfo=UTC)


def test_plan_with_date_without_time_zone_is_refused():
    with pytest.raises(PlanError, match="`expires_at`: a date needs a time zone"):
        read_plan_toml(plan_with(EXPIRY, "2030-05-06T00:00:00"))


def test_plan_with_time_of_day_for_a_date_is_refused():
    with pytest.raises(PlanError, match="`expires_at`"):
        read_plan_toml(plan_with(EXPIRY, "07:32:00"))


def test_plan_with_endless_integer_is_refused():
    with pytest.raises(PlanError, match=r"plan\.toml"):
        read_plan_toml(plan_with("steps = 3", "steps = " + "9" * 5000))


# Designs of experts

CHOICES = '["DiT-Nano/2", "UNet-Nano"]\npath = ["linear", "vp"]\nprediction = ["velocity", "noise"]'


def test_plan_with_one_name_is_the_plan_with_a_list_of_one():
    listed = read_plan_toml(plan_with('"DiT-Nano/2"', '["DiT-Nano/2"]'))
    assert listed.to_json() == a_plan().to_json()


def test_plan_with_choices_allows_each_of_them_and_defaults_to_the_first():
    spec = read_plan_toml(plan_with('"DiT-Nano/2"', CHOICES)).expert
    assert spec.default == ExpertDesign(architecture="DiT-Nano/2")
    assert spec.allows(ExpertDesign(architecture="UNet-Nano", path="vp", prediction="noise"))
    for other in (
        ExpertDesign(architecture="DiT-Nano/4"),
        ExpertDesign(architecture="UNet-Nano", path="cosine"),
        ExpertDesign(architecture="UNet-Nano", prediction="image"),
    ):
        assert not spec.allows(other)


def test_plan_with_choices_keeps_its_identity_when_read_again():
    plan = read_plan_toml(plan_with('"DiT-Nano/2"', CHOICES))
    assert type(plan).from_json(plan.to_json(), what="the plan") == plan


@pytest.mark.parametrize(("height", "width"), [(8, 10), (10, 8)])
def test_network_that_cannot_take_the_images_is_refused(height: int, width: int):
    with pytest.raises(ValueError, match=f"UNet-S halves images 2 times.*{height} x {width}"):
        require_fit("UNet-S", height, width)


def test_architecture_name_says_every_option():
    assert parse_architecture("DiT-S/2-single-qknorm-rope") == DitArchitecture(
        DIT_SIZES["S"], 2, "single", qk_norm=True, positions="rope"
    )
    assert parse_architecture("DiT-S/2") == DitArchitecture(DIT_SIZES["S"], 2)
