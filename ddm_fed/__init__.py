"""DDM-Fed: institutions that may not pool their images train one diffusion model together.

Three verbs, explained in docs/api.md: `load` opens an ensemble or a student that verifies, `verify`
says what a folder proves, and `train_expert` trains one expert on images of one's own, of which
nothing leaves. What leaves a site is made by `sites.api`, against the site's ledger. Nothing heavy
is imported here: a verb brings what it needs when it is first used.

    import ddm_fed
    ensemble = ddm_fed.load("ensemble", root="sha256:…")
    ensemble.sample(16, seed=1).grid()

A tour of what is below, in the order data flows:

* `ddm_fed.records`: plan, roster, manifest, ledger, ensemble record: facts that are signed.
* `ddm_fed.signing`: Ed25519 keys and the DSSE envelope around every record.
* `ddm_fed.flows`, `ddm_fed.models`: the path from data to noise, and networks for its velocity.
* `ddm_fed.training`: one site's expert, resumable bit for bit.
* `ddm_fed.privacy`, `ddm_fed.embedding`: what a site may say of its images, and what it costs.
* `ddm_fed.router`: log p(site | x_t, t, condition), from those releases alone.
* `ddm_fed.bundle`: what travels: written at a site, verified anywhere, read only after that.
* `ddm_fed.ensemble`: experts and router as one velocity, integrated to images.

The applications are `sites` (`ddm-site`) and `coordinator` (`ddm-coord`).
"""

from typing import TYPE_CHECKING

from ddm_fed._version import __version__

if TYPE_CHECKING:
    from ddm_fed.api import LoadedEnsemble, SampleSet, load, train_expert, verify

__all__ = ["LoadedEnsemble", "SampleSet", "__version__", "load", "train_expert", "verify"]


def __getattr__(name: str) -> object:
    """Returns a name of `__all__`, which brings torch with it (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from ddm_fed import api

    found: object = getattr(api, name)
    return found


def __dir__() -> list[str]:
    """Returns the public names, for completion in notebooks."""
    return sorted(__all__)
