"""One vocabulary for where a bundle stands: in programs, on the wire, in what a site is told."""

from ddm_fed.exchange import messages
from ddm_fed.records import BundleState
from sites.cli.submit import MEANINGS

WIRE = {1: "uploading", 2: "arrived", 3: "admitted", 4: "refused"}


def test_wire_says_the_same_words_by_the_numbers_it_always_had():
    said = {
        number: name.removeprefix("BUNDLE_STATE_").lower()
        for name, number in messages.BundleState.items()
        if number
    }
    assert said == WIRE
    assert set(WIRE.values()) <= {state.value for state in BundleState}


def test_every_state_that_a_site_is_told_has_a_sentence():
    assert {BundleState(word) for word in MEANINGS} < set(BundleState)


def test_only_what_needs_nobody_is_settled():
    settled = {state.value for state in BundleState if state.is_settled}
    assert settled == {"admitted", "superseded", "earlier plan"}
