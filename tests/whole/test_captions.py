"""Federations whose images have captions, by real commands: nothing of a caption leaves a site."""

import json
import shutil
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from captions import write_clip
from PIL import Image

pytestmark = pytest.mark.processes
SITES = ("one", "two")
# words that occur nowhere else: any of them outside a private folder is a leak
SECRETS = ("zqbright", "zqdark", "Zqürich", "zqpatient")
CAPTIONS = ("zqbright picture of Zqürich", "zqdark picture of zqpatient seven")
PLAN = """
federation = "captioned"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
conditioning = "text"
{text}
[expert]
architecture = ["DiT-Nano/4", "mixture", "mixture+DiT-Nano/4", "MMDiT-Nano/4"]
[training]
steps = {steps}
batch_size = 32
learning_rate = 0.003
warmup_steps = 10
ema_half_lives = [10]
[router]
kind = "mixture"
epsilon = 4
frequencies = 6
radius = 5
[privacy]
max_epsilon = {most}
{private}
"""
NOISY = """must_be_private = ["router", "expert"]
[privacy.sgd]
epsilon = 8
units = 100
clip_norm = 0.5
draws = 2
"""


def run(program: str, *words: object, expect: int = 0, apart: bool = False) -> commands.Ended:
    """A real command, in this process or `apart`: then all that its streams show is kept."""
    ended = (commands.run if apart else commands.here)(program, *words)
    assert ended.code == expect, f"{words}: {ended.out}\n{ended.err}"
    return ended


def images(seed: int, count: int = 128) -> dict[str, np.ndarray]:
    """Bright images and dark ones, each with its caption; a few have none."""
    rng = np.random.default_rng(seed)
    dark = rng.integers(0, 2, count)
    pixels = rng.integers(0, 40, (count, 8, 8)) + np.where(dark, 0, 200)[:, None, None]
    captions = np.array([CAPTIONS[each] for each in dark])
    captions[:4] = ""
    return {"images": pixels.astype(np.uint8), "captions": captions}


class Federation:
    """A coordinator and two sites under one folder; keeps what every command said."""

    def __init__(self, base: Path, *, steps: int = 50, private: str = "", most: int = 5) -> None:
        self.base, self.hub, self.said = base, base / "hub", []
        self.encoder = write_clip(base / "clip.safetensors")
        self.root = self.coord("init", self.hub, "--federation", "captioned").out.strip()
        for name in SITES:
            self.site(name, "init", base / name, "--name", name, "--root", self.root, plain=True)
            enrolment = base / name / "enrolment.dsse.json"
            self.coord("roster", "add", enrolment, "--coordinator", self.hub)
        text = self.coord("plan", "text", self.encoder, "--tokens", 12).out
        assert text.startswith("[data.text]")
        plan = PLAN.format(text=text, steps=steps, private=private, most=most)
        (base / "plan.toml").write_text(plan)
        self.coord("publish", base / "plan.toml", "--coordinator", self.hub)
        for seed, name in enumerate(SITES):
            np.savez_compressed(base / f"{name}.npz", **images(seed))

    def coord(self, *words: object, expect: int = 0) -> commands.Ended:
        return self._kept(run("ddm-coord", *words, expect=expect))

    def site(self, name: str, *words: object, plain: bool = False, **how: Any) -> commands.Ended:
        where = () if plain else ("--site", self.base / name, "--plan", self.hub / "published")
        return self._kept(run("ddm-site", *words, *where, **how))

    def train(self, name: str, *options: object, **how: Any) -> commands.Ended:
        return self.site(name, "train", "--data", self.base / f"{name}.npz", *options, **how)

    def assemble(self, target: Path, *options: object) -> None:
        for name in SITES:
            self.site(name, "review")
            self.site(name, "release")
            self.site(name, "submit", "--to", self.hub / "inbox")
        arrivals = json.loads(self.coord("admit", "--coordinator", self.hub, "--json").out)
        assert sorted(arrival["site"] for arrival in arrivals) == sorted(SITES)
        self.coord("assemble", target, "--coordinator", self.hub, *options)

    def _kept(self, ended: commands.Ended) -> commands.Ended:
        self.said.append(ended.out + ended.err)
        return ended

    def require_no_caption(self) -> None:
        """Looks for the words of captions in all that was said and in every file but private ones.

        The encoded captions in `private/` have none either, but are as private as they are.
        """
        for said in self.said:
            assert not any(word in said for word in SECRETS)
        looked = 0
        for path in self.base.rglob("*"):
            inside = path.relative_to(self.base).parts
            if not path.is_file() or "private" in inside[:-1] or inside[0] in NOT_LOOKED_AT:
                continue
            content, looked = path.read_bytes(), looked + 1
            assert not any(word.encode() in content for word in SECRETS), path
        assert looked > 20


NOT_LOOKED_AT = tuple(f"{name}.npz" for name in SITES)  # the sites' own images


@pytest.fixture(scope="module")
def fed(tmp_path_factory):
    fed = Federation(tmp_path_factory.mktemp("captioned"))
    refused = fed.train("one", expect=2).err
    assert "no --text-encoder is given" in refused
    trained = fed.train("one", "--text-encoder", fed.encoder, apart=True).err
    assert "encoding 2 distinct captions" in trained
    assert "4 of the images have no caption" in trained
    fed.train("two", "--text-encoder", fed.encoder, "--architecture", "MMDiT-Nano/4")
    fed.assemble(fed.base / "ensemble")
    return fed


def sample(fed: Federation, out: Path, *options: object, expect: int = 0) -> commands.Ended:
    common = ("--root", fed.root, "--count", 24, "--steps", 8, "--out", out)
    words = ("sample", fed.base / "ensemble", *common, *options)
    return run("ddm-coord", *words, expect=expect)


def drawn(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "samples.npz") as archive:
        return dict(archive)


def test_no_word_of_a_caption_leaves_a_site(fed):
    fed.require_no_caption()
    assert list((fed.base / "one" / "private").rglob("captions/tokens.npy"))


def test_search_for_captions_finds_one_that_leaked(fed, tmp_path):
    leaked = Federation.__new__(Federation)
    shutil.copytree(fed.base / "one", tmp_path / "one")
    leaked.base, leaked.said = tmp_path, []
    (tmp_path / "one" / "outbox" / "note.txt").write_text(f"of {CAPTIONS[1]}")
    with pytest.raises(AssertionError, match=r"note\.txt"):
        leaked.require_no_caption()


def test_prompt_decides_what_samples_show_and_the_seed_the_rest(fed, tmp_path):
    lines = "\r\n".join([CAPTIONS[0], "", CAPTIONS[1], ""])
    (tmp_path / "prompts.txt").write_bytes(lines.encode())
    encoder = ("--text-encoder", fed.encoder)
    by_file = ("--prompts", tmp_path / "prompts.txt", *encoder, "--guidance", 2)
    sample(fed, tmp_path / "file", *by_file)
    both = drawn(tmp_path / "file")
    assert both["prompts"].tolist() == [0, 1] * 12
    means = both["images"].reshape(24, -1).mean(1)
    assert means[::2].min() > means[1::2].max() + 40
    typed = ("--prompt", CAPTIONS[0], "--prompt", CAPTIONS[1], *encoder, "--guidance", 2)
    sample(fed, tmp_path / "typed", *typed)
    assert np.array_equal(drawn(tmp_path / "typed")["images"], both["images"])
    sample(fed, tmp_path / "other", *typed, "--seed", 1)
    assert not np.array_equal(drawn(tmp_path / "other")["images"], both["images"])
    summary = json.loads((tmp_path / "file" / "samples.json").read_text())
    assert summary["prompts"] == list(CAPTIONS)
    with Image.open(tmp_path / "file" / "images" / "000000.png") as picture:
        assert picture.text["prompt"] == CAPTIONS[0]
    full = ("--strategy", "full", "--attribution")
    sample(fed, tmp_path / "full", *typed, *full)
    means = drawn(tmp_path / "full")["images"].reshape(24, -1).mean(1)
    assert means[::2].min() > means[1::2].max() + 40


def test_site_samples_by_prompt_and_without_one(fed, tmp_path):
    common = ("--count", 4, "--steps", 4, "--site", fed.base / "one", fed.base / "ensemble")
    options = ("--prompt", "Größe", "--text-encoder", fed.encoder)
    run("ddm-site", "sample", *common, "--out", tmp_path / "prompt", *options)
    assert drawn(tmp_path / "prompt")["prompts"].tolist() == [0] * 4
    said = run("ddm-site", "sample", *common, "--out", tmp_path / "none").err
    assert "nothing was said of" in said
    assert "prompts" not in drawn(tmp_path / "none")


def test_prompts_that_cannot_be_answered_are_refused(fed, tmp_path):
    other = write_clip(tmp_path / "other.safetensors", seed=2)
    (tmp_path / "latin").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "long").write_bytes(b"a" * 3000)
    (tmp_path / "large").write_bytes(b"a\n" * 600_000)
    (tmp_path / "blank").write_bytes(b"\r\n\r\n")
    encoder = ("--text-encoder", fed.encoder)
    for options, wanted in (
        (("--prompt", "a"), "takes --text-encoder"),
        (("--prompt", "a", "--text-encoder", other), "has SHA-256"),
        (encoder, "without a --prompt"),
        (("--class", "bright"), "give --prompt instead"),
        (("--guidance", 2), "needs a prompt to guide to"),
        (("--prompts", tmp_path / "latin", *encoder), "not written in UTF-8, see line 1"),
        (("--prompts", tmp_path / "long", *encoder), "one has 3,000 characters"),
        (("--prompts", tmp_path / "large", *encoder), "more than 1,048,576 bytes"),
        (("--prompts", tmp_path / "blank", *encoder), "holds no prompt"),
        (("--prompts", tmp_path / "missing", *encoder), "there is no such file"),
    ):
        refused = sample(fed, tmp_path / "out", *options, expect=1 if other in options else 2)
        assert wanted in refused.err, refused.err
        assert "Traceback" not in refused.err


def test_site_with_other_captions_is_refused_without_a_word_of_them(fed, tmp_path):
    good = images(0)
    for name, changed, wanted in (
        ("none", {"images": good["images"]}, "has no captions"),
        ("few", good | {"captions": good["captions"][:5]}, "captions of shape (5,)"),
        ("numbers", good | {"captions": np.arange(128)}, "not texts"),
        ("halves", good | {"captions": np.full(128, "zqdark \udcff")}, "128 captions that are no"),
        ("empty", good | {"captions": np.full(128, " ")}, "all empty"),
        ("long", good | {"captions": np.array([CAPTIONS[0] * 1000] * 128)}, "128 captions of more"),
    ):
        np.savez_compressed(tmp_path / f"{name}.npz", **changed)
        refused = fed.site("one", "train", "--data", tmp_path / f"{name}.npz", "--yes", expect=1)
        assert wanted in refused.err, refused.err
        assert not any(word in refused.err for word in (*SECRETS, "Traceback"))


def test_site_reads_captions_beside_a_mapped_array_and_audits_with_them(fed, tmp_path):
    good = images(0)
    np.save(tmp_path / "site.npy", good["images"][:, None])
    np.save(tmp_path / "site.captions.npy", good["captions"])
    held = images(9, 40)
    np.savez_compressed(tmp_path / "held.npz", **held)
    said = fed.site("one", "train", "--data", tmp_path / "site.npy").err
    assert "trained already" in said  # the same images and captions, in another form
    controls = ("--controls", tmp_path / "held.npz", "--text-encoder", fed.encoder)
    data = ("--data", fed.base / "one.npz", "--canaries", 200, "--training-steps", 2)
    found = json.loads(fed.site("one", "audit", *data, *controls, "--json").out)
    assert found["membership"] is not None
    fed.require_no_caption()


@pytest.mark.timeout(900)  # two trainings with noise, each examined first
def test_private_training_and_mixtures_take_captions_along(tmp_path):
    fed = Federation(tmp_path, steps=3, private=NOISY, most=9)
    private = fed.train("one", "--text-encoder", fed.encoder, apart=True).err
    assert "the mechanism passed" in private
    fed.train("two", "--text-encoder", fed.encoder, "--architecture", "mixture+DiT-Nano/4")
    fed.assemble(fed.base / "ensemble")
    options = ("--prompt", "a", "--text-encoder", fed.encoder, "--strategy", "full")
    sample(fed, tmp_path / "samples", *options)
    assert drawn(tmp_path / "samples")["images"].shape == (24, 1, 8, 8)
    fed.require_no_caption()
