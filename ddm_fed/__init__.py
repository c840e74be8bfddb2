"""DDM-Fed: institutions that may not pool their images train one diffusion model together.

A tour, in the order data flows. Nothing heavy is imported here; open the module you need.

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

from ddm_fed._version import __version__ as __version__
