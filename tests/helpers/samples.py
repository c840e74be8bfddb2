"""Samples of two known experts, written to a folder, for tests of what is written."""

from dataclasses import replace

import torch

from ddm_fed.ensemble.sample_folder import Content, write_samples
from ddm_fed.ensemble.sample_options import SampleOptions
from ddm_fed.ensemble.sampling import SamplingOptions
from ddm_fed.ensemble.strategy import DEFAULT_STRATEGY, Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.records import DataSpec
from ddm_fed.router import PriorRouter

SOURCE = {"ensemble_sha256": "0" * 64, "members": {"north": "1" * 64, "south": "2" * 64}}
PLAIN = DataSpec(channels=1, height=4, width=4)
CLASSES = DataSpec(channels=3, height=4, width=4, conditioning="class", classes=("cat", "dog"))
SAMPLING = SamplingOptions(
    strategy=DEFAULT_STRATEGY, steps=3, solver="heun", seed=7, batch_size=3, in_flight=4
)
OPTIONS = SampleOptions(count=11, sampling=SAMPLING)


def changed(options=OPTIONS, **values):
    """The options with other values, whether they say how or what is sampled."""
    how = {name: values.pop(name) for name in list(values) if hasattr(SAMPLING, name)}
    return replace(options, sampling=replace(options.sampling, **how), **values)


FULL = Strategy.parse("full")


def tints():
    """Two experts that pull every image to a grey of their own."""

    def expert(grey):
        return lambda x, t, condition: (x - grey) / t.reshape(-1, 1, 1, 1)

    return [expert(-0.5), expert(0.5)]


def ensemble(classes=1):
    return Ensemble(tints(), PriorRouter(torch.ones(2, classes)))


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content(data=PLAIN, totals=None, **more):
    if totals is None and data.classes:
        totals = [1.0] * len(data.classes)
    return Content(data, None if totals is None else torch.tensor(totals).double(), **more)


def write(out, options=OPTIONS, data=PLAIN, totals=None, facts=None, **more):
    what = content(data, totals, **(facts or {}))
    return write_samples(ensemble(len(data.classes) or 1), what, out, options, SOURCE, **more)
