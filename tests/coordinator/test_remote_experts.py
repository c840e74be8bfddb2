"""Where sites answer for their experts: what `--remote` may say."""

import pytest

from coordinator.remote_experts import parse_remotes
from ddm_fed.errors import OptionError


def test_addresses_of_sites_are_read():
    texts = ["a=10.0.0.7:8445", "b=expert.hospital.example:1", "c=[fe80::1%eth0]:8445"]
    assert parse_remotes(texts) == dict(text.split("=") for text in texts)
    assert parse_remotes(None) == {}


@pytest.mark.parametrize(
    "text",
    [
        *("a", "=h:1", "a=h", "a=:1", "a=h:", "a=h:0", "a=h:65536", "a=h:x", "a==h:1"),
        *("a=http://10.0.0.7:8445", "a=unix:/tmp/x:5", "a= :1", "a=h\n:5", "a=::1:8445"),
    ],
)
def test_what_is_no_address_is_refused_before_anybody_is_asked(text):
    with pytest.raises(OptionError, match="not SITE=HOST:PORT"):
        parse_remotes([text])


def test_site_that_is_named_twice_is_refused():
    with pytest.raises(OptionError, match="`a` is named twice"):
        parse_remotes(["a=h:1", "a=h:2"])
