"""Numbers, names and files that two readers read differently, or that end in a traceback."""

import json
import os
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from federation import PLAN_TOML, SITES, Federation, forge, forge_manifest, sign_files, tensor_bytes
from pydantic import TypeAdapter, ValidationError

import coordinator.cli.main
import coordinator.server.service
import ddm_fed.ensemble.agreement
import ddm_fed.ensemble.folder
from coordinator.ensembles.assemble import assemble
from coordinator.ensembles.newest import newest_ensemble
from coordinator.server.server import ServerOptions, serving
from coordinator.status.metrics import ServerMetrics
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import DdmFedError, ExchangeError, PlanError
from ddm_fed.exchange import failure_of, messages, services
from ddm_fed.records import read_plan_toml
from ddm_fed.records.base import Figure, Number, PlainText
from ddm_fed.remote import open_folder
from ddm_fed.signing import server_certificates_pem
from sites.transport.address import Address
from sites.transport.fetch import fetch_ensemble
from sites.transport.grpc import channel_to

A = SITES[0]


def verify_bundle(run, stages, bundle: Path):
    fed = stages.submitted
    words = ("verify", bundle, "--root", fed.root, "--published", fed.published)
    return run("ddm-coord", *words)


# Numbers


STRANGE_NUMBERS = [
    "٢.0000",
    "\uff12.0000",
    "2_0.0",
    " 2",
    "2 ",
    "+2",
    "2.",
    ".5",
    "0x2",
    "2e1000",
    "१",
]


@pytest.mark.parametrize("text", STRANGE_NUMBERS)
def test_number_in_other_digits_or_forms_is_no_number(text):
    for kind in (Number, Figure):
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_json(json.dumps(text), strict=True)


@pytest.mark.parametrize("text", ["2", "2.0000", "0.25", "-1.5", "1e-5", "1E+2"])
def test_number_in_plain_digits_is_read(text):
    assert float(TypeAdapter(Number).validate_json(json.dumps(text), strict=True)) == float(text)


@pytest.mark.parametrize("text", ["٢.0000", "02.0000", "2_0.0"])
def test_epsilon_in_digits_of_another_script_is_refused(run, stages, bundle, site_keys, text):
    forge_manifest(
        bundle, lambda fields: fields["privacy"].update(releases_epsilon=text), site_keys[A]
    )
    code, _, err = verify_bundle(run, stages, bundle)
    assert (code, "error[DDM201]" in err) == (1, True)


def test_noise_in_digits_of_another_script_is_refused(run, stages, bundle, site_keys):
    def edit(fields):
        event = fields["privacy"]["ledger"][-1]["event"]
        western, arabic = "0123456789", "٠١٢٣٤٥٦٧٨٩"
        event["noise_multiplier"] = event["noise_multiplier"].translate(
            str.maketrans(western, arabic)
        )

    forge_manifest(bundle, edit, site_keys[A])
    code, _, err = verify_bundle(run, stages, bundle)
    assert (code, "error[DDM201]" in err) == (1, True)
    assert "digits 0 to 9" in err


# Words


UNSEEN = ["\x1b[2J", "\x00", "\n", "\x07", "\u202e", "\u200b", "\u2028", "\x9b"]


@pytest.mark.parametrize("text", UNSEEN)
def test_unseen_characters_are_no_text(text):
    with pytest.raises(ValidationError):
        TypeAdapter(PlainText).validate_json(json.dumps(f"a{text}b"), strict=True)


@pytest.mark.parametrize("text", ["naïve", "ä", "医院", "Größe (µm) 1/2", "مستشفى"])
def test_words_of_any_language_are_text(text):
    assert TypeAdapter(PlainText).validate_json(json.dumps(text), strict=True) == text


@pytest.mark.parametrize("field", ["program", "torch"])
def test_control_characters_in_a_manifest_are_refused(run, stages, bundle, site_keys, field):
    forge_manifest(
        bundle, lambda fields: fields["training"].update({field: "\x1b]0;x\x07"}), site_keys[A]
    )
    code, out, err = verify_bundle(run, stages, bundle)
    assert (code, "error[DDM201]" in err) == (1, True)
    assert "\x1b" not in out + err


@pytest.mark.parametrize("reason", ["asked\x1b[2J to", "two\nlines", "x" * 1001])
def test_reason_of_a_removal_that_cannot_be_signed_is_refused_before_it_counts(
    run, copy_of, scratch, reason
):
    fed = copy_of("admitted")
    words = ("remove", A, "--coordinator", fed.home.path, "--reason", reason)
    code, _, err = run("ddm-coord", *words, "--out", scratch / "without")
    assert (code, "error[DDM107]" in err) == (2, True)
    assert fed.log.size == 3


def test_names_of_classes_hold_nothing_unseen_and_a_description_may_have_lines():
    classes = 'width = 8\nconditioning = "class"\nclasses = ["a", "{}"]'
    with pytest.raises(PlanError, match="invisible"):
        read_plan_toml(PLAN_TOML.replace("width = 8", classes.format("b\\u202Ec")))
    with pytest.raises(PlanError, match="invisible"):
        read_plan_toml('description = "a\\u001Bb"\n' + PLAN_TOML)
    assert read_plan_toml('description = "a\\n\\tb"\n' + PLAN_TOML).description == "a\n\tb"


# One name, two digests


def test_ensemble_that_names_a_file_twice_is_refused(run, stages, ensemble):
    fed = stages.admitted

    def edit(statement):
        first = statement["subject"][0]
        statement["subject"].insert(0, first | {"digest": {"sha256": "0" * 64}})

    forge(ensemble / "ensemble.dsse.json", edit, fed.coordinator_key())
    code, _, err = run("ddm-coord", "verify", ensemble, "--root", fed.root)
    assert (code, "error[DDM201]" in err) == (1, True)
    assert "twice" in err


def test_bundle_that_names_a_file_twice_is_refused(run, stages, bundle, site_keys):
    forge(
        bundle / "submission.dsse.json",
        lambda statement: statement["subject"].append(statement["subject"][0]),
        site_keys[A],
    )
    code, _, err = verify_bundle(run, stages, bundle)
    assert (code, "twice" in err) == (1, True)


# Files that come and go


def test_file_that_goes_while_an_ensemble_is_verified_ends_without_a_traceback(
    stages, ensemble, monkeypatch
):
    (ensemble / "passing").write_bytes(b"x")
    real = ddm_fed.ensemble.agreement.read_published

    def meanwhile(*arguments):
        (ensemble / "passing").unlink(missing_ok=True)
        return real(*arguments)

    monkeypatch.setattr(ddm_fed.ensemble.agreement, "read_published", meanwhile)
    verify_ensemble(ensemble, stages.admitted.root)  # nothing of it was ever signed


def test_file_that_comes_while_an_ensemble_is_verified_is_refused_or_not_looked_at(
    stages, ensemble, monkeypatch
):
    real = ddm_fed.ensemble.folder.read_log

    def meanwhile(*arguments):
        (ensemble / "sites" / A / "head.safetensors").write_bytes(b"x")
        return real(*arguments)

    monkeypatch.setattr(ddm_fed.ensemble.folder, "read_log", meanwhile)
    with pytest.raises(DdmFedError):
        verify_ensemble(ensemble, stages.admitted.root)


def test_file_that_goes_while_a_medium_is_listed_hides_no_other(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / "incoming" / name).mkdir(parents=True)
    medium = open_folder(str(tmp_path))
    real = os.scandir

    @contextmanager
    def meanwhile(path):
        with real(path) as found:
            items = list(found)
        (tmp_path / "incoming" / "b").rmdir()
        yield iter(items)

    monkeypatch.setattr(os, "scandir", meanwhile)
    assert [entry.name for entry in medium.entries("incoming")] == ["a", "c"]


# Over the network


@contextmanager
def serving_of(fed: Federation):
    options = ServerOptions(listen="127.0.0.1:0", timeout_s=5.0, share_ensemble=True)
    with serving(fed.home, options, ServerMetrics(), lambda _: True) as found:
        yield Address("127.0.0.1", found.port, None)


@contextmanager
def member(fed: Federation, address: Address):
    key = fed.site(A).tls(fed.trust.roster.site(A))
    pem = server_certificates_pem(fed.trust.roster)
    with channel_to(address, pem, (key.private_pem, key.certificate_pem)) as channel:
        yield services.ExchangeServiceStub(channel)


@pytest.fixture
def shared(copy_of, scratch) -> Federation:
    fed = copy_of("admitted", A)
    assemble(fed.home, scratch / "ensemble", router=None, without=())
    return fed


ODD_DIGESTS = ["\x00", "a\x00" * 32, "../" * 30, "/etc/passwd", "a/b", "f" * 300, "f" * 9000, ""]


@pytest.mark.parametrize("digest", ODD_DIGESTS)
def test_digest_that_is_none_is_answered_as_unknown(shared, digest, capfd):
    with serving_of(shared) as address, member(shared, address) as stub:
        calls = [
            lambda: stub.QueryWriteStatus(
                messages.QueryWriteStatusRequest(submission_sha256=digest), timeout=10
            ),
            lambda: stub.CommitUpload(
                messages.CommitUploadRequest(submission_sha256=digest), timeout=10
            ),
            lambda: stub.WriteUpload(
                iter([messages.WriteUploadRequest(submission_sha256=digest, offset=2**62)]),
                timeout=10,
            ),
            lambda: list(
                stub.ReadEnsemble(
                    messages.ReadEnsembleRequest(ensemble_sha256=digest, name=digest), timeout=10
                )
            ),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() != grpc.StatusCode.INTERNAL
            assert failure_of(caught.value).error is not None
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("offset", [2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_offset_beyond_a_file_is_answered_with_its_size(shared, offset, capfd):
    found = newest_ensemble(shared.home)
    with serving_of(shared) as address, member(shared, address) as stub:
        wanted = messages.ReadEnsembleRequest(
            ensemble_sha256=found.sha256, name="plan.dsse.json", offset=offset
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ReadEnsemble(wanted, timeout=10))
        assert failure_of(caught.value).error.code == "DDM502"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("digest", ["../../../escaped", "a/b", "\x00", "f" * 300, ""])
def test_coordinator_whose_ensemble_has_an_odd_digest_writes_nothing(
    shared, digest, monkeypatch, scratch
):
    honest = newest_ensemble(shared.home)
    odd = replace(honest, sha256=digest)
    monkeypatch.setattr(coordinator.server.service, "newest_ensemble", lambda _: odd)
    target = scratch / "fetched" / "ensemble"
    target.parent.mkdir()
    with (
        serving_of(shared) as address,
        pytest.raises(ExchangeError, match="offered an ensemble called"),
    ):
        fetch_ensemble(shared.site(A), address, shared.trust, target, timeout_s=5)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["a\x00b", "sites/../../x", "x" * 300, "a/b/c/d/e/f", "A", "a\nb"])
def test_coordinator_whose_ensemble_has_an_odd_name_writes_nothing(
    shared, name, monkeypatch, scratch
):
    honest = newest_ensemble(shared.home)
    odd = replace(honest, files={name: 5})
    monkeypatch.setattr(coordinator.server.service, "newest_ensemble", lambda _: odd)
    target = scratch / "fetched" / "ensemble"
    with serving_of(shared) as address, pytest.raises(ExchangeError, match="a file called"):
        fetch_ensemble(shared.site(A), address, shared.trust, target, timeout_s=5)
    assert not [path for path in scratch.rglob("*") if path.name == "x"]


# Arrays


def npy(shape: str, size: int, dtype: str = "|u1") -> bytes:
    """An .npy of `size` bytes whose header claims `shape`."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(size)


ODD_SHAPES = {
    "negative": ("(-1, 8, 8)", 640),
    "two-negative": ("(-2, -8, 8)", 128),
    "25-GB": ("(400000, 256, 256)", 100),
    "beyond-64-bits": (f"({2**70},)", 10),
    "wraps-around": (f"({2**62}, 4)", 0),
    "true": ("(True, 8, 8)", 64),
    "more-than-there-is": ("(10, 8, 8)", 639),
    "less-than-there-is": ("(10, 8, 8)", 641),
}


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("odd", ODD_SHAPES)
def test_array_whose_header_lies_is_refused_by_name_and_allocates_nothing(
    run, copy_of, scratch, odd, kind
):
    fed = copy_of("drafted", A)
    shape, size = ODD_SHAPES[odd]
    file = scratch / f"odd.{kind}"
    if kind == "npy":
        file.write_bytes(npy(shape, size))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", npy(shape, size))
    words = ("--site", fed.path / A, "--plan", fed.published, "--data", file)
    code, _, err = run("ddm-site", "train", *words)
    assert (code, "error[DDM102]" in err) == (1, True)
    assert "claims the shape" in err


def test_labels_and_unit_ids_whose_headers_lie_are_refused(run, copy_of, scratch):
    fed = copy_of("drafted", A)
    file = scratch / "images.npy"
    np.save(file, np.zeros((24, 8, 8), dtype=np.uint8))
    file.with_suffix(".labels.npy").write_bytes(npy(f"({2**70},)", 24, "<i8"))
    words = ("--site", fed.path / A, "--plan", fed.published, "--data", file)
    code, _, err = run("ddm-site", "train", *words)
    assert (code, "claims the shape" in err) == (1, True)


def test_offsets_of_tensors_beyond_the_file_are_refused(run, stages, bundle, site_keys):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [2**62, 2**62 + 4]}
    sign_files(bundle, site_keys[A], router=tensor_bytes({"location": entry}))
    code, _, err = verify_bundle(run, stages, bundle)
    assert (code, "Traceback" in err) == (1, False)
