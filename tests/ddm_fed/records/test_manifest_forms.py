"""What a manifest may say: a closed list of fields with closed forms, and no time of day."""

import base64
import json
import re
import time

import pytest
from federation import SITES, a_plan, create_federation, random_images

from coordinator.roster import proposals
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import MalformedError
from ddm_fed.progress import Watch
from ddm_fed.records import LedgerEntry, Submission
from ddm_fed.training import RunOptions
from ddm_fed.trust.log import read_log
from sites.train.expert import TrainingOptions
from sites.train.pipeline import run_plan

A = SITES[0]
# checked by a function, against a list: the networks there are
BY_FUNCTION = {"architecture"}
TIME = re.compile(r"^\d{4}-\d\d-\d\dT(.*)$")


def strings(schema, definitions, path=""):
    """Yields the path and schema of every place in a record where a string may stand."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for name, part in schema.get("properties", {}).items():
        yield from strings(part, definitions, f"{path}.{name}")
    for key in ("items", "additionalProperties", "propertyNames"):
        if isinstance(schema.get(key), dict):
            yield from strings(schema[key], definitions, f"{path}[{key}]")
    if {part.get("type") for part in schema.get("anyOf", ())} >= {"number", "string"}:
        return  # a decimal number
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from strings(part, definitions, path)
    for part in schema.get("prefixItems", ()):
        yield from strings(part, definitions, f"{path}[]")
    if schema.get("type") == "string":
        yield path, schema


def test_every_text_of_a_manifest_has_a_closed_form():
    schema = Submission.model_json_schema(by_alias=True)
    found = list(strings(schema, schema["$defs"]))
    assert len(found) > 30
    free = {
        path
        for path, part in found
        if not {"pattern", "enum", "const"} & part.keys() and part.get("format") != "date-time"
    }
    assert {path.rpartition(".")[2] for path in free} == BY_FUNCTION


def test_no_pattern_of_a_manifest_takes_a_sentence():
    schema = Submission.model_json_schema(by_alias=True)
    for path, part in strings(schema, schema["$defs"]):
        if "pattern" in part and "enum" not in part:
            assert not re.search(part["pattern"], "trained on 137 images"), path
            assert not re.search(part["pattern"], "137 images"), path


@pytest.mark.parametrize("word", ["dp-sgd of 137 images", "DP-SGD", "", "dp-sgd "])
def test_ledger_entry_of_other_words_is_refused(word):
    entry = {
        "index": 0,
        "previous_sha256": None,
        "recorded_at": "2026-11-23T00:00:00Z",
        "plan_sha256": "0" * 64,
        "purpose": "expert",
        "mechanism": word,
        "event": {"kind": "non_private"},
    }
    with pytest.raises(MalformedError, match="mechanism"):
        LedgerEntry.from_json(json.dumps(entry).encode(), what="line 1")


@pytest.mark.parametrize("moment", ["2026-11-23T00:00:01Z", "2026-11-23T12:00:00Z"])
def test_ledger_entry_with_a_time_of_day_is_refused(moment):
    entry = {
        "index": 0,
        "previous_sha256": None,
        "recorded_at": moment,
        "plan_sha256": "0" * 64,
        "purpose": "expert",
        "mechanism": "no-noise",
        "event": {"kind": "non_private"},
    }
    with pytest.raises(MalformedError, match="a day is its midnight"):
        LedgerEntry.from_json(json.dumps(entry).encode(), what="line 1")


def times_in(value):
    if isinstance(value, dict):
        return [found for part in value.values() for found in times_in(part)]
    if isinstance(value, list):
        return [found for part in value for found in times_in(part)]
    return [value] if isinstance(value, str) and TIME.match(value) else []


@pytest.mark.slow
def test_manifest_does_not_tell_how_long_the_training_took(tmp_path):
    found = []
    for name, pause in (("short", 0.0), ("long", 1.1)):
        fed = create_federation(tmp_path / name, sites=(A,))
        proposals.publish_plan(fed.home, a_plan())
        fed.look(A)
        draft = run_plan(
            fed.site(A),
            fed.trust,
            read_log(fed.site(A).seen, fed.trust.chain),
            random_images(0),
            TrainingOptions(RunOptions(seed=0, precision="float32")),
            Watch(on_step=lambda _, pause=pause: time.sleep(pause)),
        )
        envelope = json.loads((draft / ENVELOPE_FILE).read_bytes())
        found.append(times_in(json.loads(base64.b64decode(envelope["payload"]))))
        # copies are made at signing: their times are not those of training and release
        written = [
            (draft / file).stat().st_mtime for file in ("expert.safetensors", "router.safetensors")
        ]
        assert max(written) - min(written) < 1.0
    short, long = found
    assert len(short) == 5  # issue, end, and three entries of the ledger
    assert all(moment.endswith("T00:00:00Z") for moment in (*short, *long))
    assert {len(set(short)), len(set(long))} == {2}  # all of one day, but for the end
