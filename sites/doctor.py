"""What `ddm-site doctor` looks at: keys, folders, ledger, plan, clock, server, data, machine, run.

Everything here reads: it takes no lock, remembers nothing of what it is shown, and spends nothing.
What `train` refuses before it spends is asked here of the same functions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from ddm_fed.doctor import (
    Finding,
    Verdict,
    available_memory,
    gigabytes,
    look,
    look_at_clock,
    look_at_disk,
    look_at_end,
    look_at_folders,
    look_at_keys,
)
from ddm_fed.errors import DdmFedError
from ddm_fed.privacy import ImageSet, Private, epsilon_text, private_events
from ddm_fed.progress import duration
from ddm_fed.records import Plan, network_of, now, read_plan_file
from ddm_fed.signing import check_site_certificate
from ddm_fed.training import RunOptions, require_possible, training_cost
from ddm_fed.training.forecast import forecast
from ddm_fed.training.plan_cost import delta_warning, planned_events
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log
from ddm_fed.trust.published import published_folder
from sites.data import DataReport
from sites.outbox.stages import find_bundles, member_of, require_kept, signed_submission
from sites.privacy.ledger import open_ledger
from sites.privacy.policy import require_policy
from sites.published import inspect, known_log, known_trust
from sites.transport.address import Address
from sites.transport.fetch import greet
from sites.workspace import SiteFolder

Load = Callable[[Plan], tuple[Private[ImageSet], DataReport]]
CLOCK_DOUBT_S, CLOCK_FAILS_S = 120.0, 3600.0
LATENT_BYTES = 8  # of a value: mean and deviation


@dataclass
class Examination:
    """One look at a site, for what it is asked to do.

    Attributes:
        site: The site.
        plan_path: The published folder or plan.toml; None is what the site was shown last.
        server: The coordinator; None leaves it out.
        load: Reads the images as the plan wants them; None leaves them out.
        timeout_s: How long to wait for the server.
        findings: What was found, in order.
        facts: Figures of the run, for programs.
    """

    site: SiteFolder
    plan_path: Path | None = None
    server: Address | None = None
    load: Load | None = None
    timeout_s: float = 10.0
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _plan: Plan | None = None
    _trust: Trust | None = None
    _log: Log | None = None
    _count: int = 0
    _units: int = 0

    def run(self) -> None:
        """Looks at everything once."""
        self.findings += look_at_keys(self.site.keys)
        self.findings += look_at_folders(self.site.path, ("keys", "private"))
        self._look("plan", self._read_plan)
        if self._trust is not None:
            self._look("roster", self._membership)
        self._look("ledger", self._ledger)
        self._look("outbox", self._outbox)
        self.findings.append(look_at_clock(self._moments()))
        if self.server is not None:
            self._look("server", self._greet)
        plan = self._plan
        if plan is None:
            return
        self._look("budget", lambda: self._budget(plan))
        self._note_files(plan)
        if self.load is not None:
            self._look("data", lambda: self._data(plan))
        if self._units:
            self._look("run", lambda: self._run(plan))
        try:
            self._machine(plan)
        except DdmFedError as error:  # such as a network of a package that is not installed
            self.findings.append(Finding("network", "fails", error.message, error.hint))

    def _look(self, what: str, check: Callable[[], str | Finding]) -> None:
        self.findings.append(look(what, check))

    def _read_plan(self) -> str | Finding:
        path = self.plan_path
        advice = "ask the coordinator to publish a new one: `ddm-coord publish`"
        if path is None:
            self._trust, self._log = known_trust(self.site), known_log(self.site)
        elif path.suffix == ".toml":
            self._plan = read_plan_file(path)
            seen = look_at_end("plan", self._plan.expires_at, "give it a later `expires_at`")
            if seen.verdict == "fails":
                return seen
            why = "it is as people wrote it: nobody has signed it"
            return Finding("plan", "doubt", why, "train under the published one")
        else:
            found = inspect(self.site, published_folder(path))
            self._trust, self._log = found.trust, found.log
        if self._trust is None:
            why = "this site was shown none yet"
            return Finding("plan", "doubt", why, "run `ddm-site fetch`, or give --plan")
        self._plan = self._trust.plan
        seen = look_at_end("plan", self._plan.expires_at, advice)
        said = f"{self._trust.plan_sha256[:16]}…, signed, no older than any seen before; "
        return seen._replace(why=said + seen.why)

    def _membership(self) -> Finding:
        trust, name = self._trust, self.site.settings.name
        if trust is None:
            raise TypeError("there is no roster")
        member = member_of(self.site, trust)
        self.site.key(member)
        certificate = self.site.tls(member).certificate
        of = f"the certificate of `{name}`"
        known = check_site_certificate(certificate, name, what=of, moment=now())
        ends, advice = trust.roster.expires_at, "ask the coordinator for `ddm-coord roster renew`"
        if known.not_after < ends:
            ends, advice = known.not_after, "run `ddm-site rotate --certificate`"
        seen = look_at_end("roster", ends, advice)
        said = f"`{name}` is in roster {trust.roster.version} with its key; "
        return seen._replace(why=said + seen.why)

    def _ledger(self) -> str:
        entries = open_ledger(self.site, self._log).entries()
        return f"whole, with {len(entries)} entries"

    def _outbox(self) -> str:
        waiting = [
            bundle
            for bundle in find_bundles(self.site.released)
            if not (self.site.receipts / f"{bundle.name}.dsse.json").exists()
        ]
        for bundle in waiting:  # Flower's program sees this folder, and no policy
            require_kept(self.site.settings, signed_submission(bundle))
        return f"{len(waiting)} released bundles have no receipt yet, and each may leave"

    def _moments(self) -> list[tuple[str, datetime]]:
        """Returns what is past for certain, since somebody signed when it was."""
        found = list[tuple[str, datetime]]()
        if self._trust is not None:
            roster = self._trust.roster
            found.append((f"roster {roster.version}", roster.issued_at))
        for entry in [] if self._log is None else self._log.entries:
            if entry.receipt is not None:
                found.append((f"leaf {entry.index} of the log", entry.receipt.admitted_at))
        return found

    def _greet(self) -> str | Finding:
        if self.server is None:
            raise TypeError("there is no server")
        trust = self._trust or known_trust(self.site)
        said = greet(self.site, self.server, trust, timeout_s=self.timeout_s)
        why = f"{self.server.target} answers as the roster says; this site is {said.state} there"
        off = abs(said.ahead_s or 0.0)
        if off > CLOCK_DOUBT_S:
            side = "behind" if (said.ahead_s or 0.0) > 0 else "ahead of"
            why += f"; this clock is {duration(off)} {side} its clock"
            verdict: Verdict = "fails" if off > CLOCK_FAILS_S else "doubt"
            advice = "set the clock that is wrong: what is signed with it is dated wrongly"
            return Finding("server", verdict, why, advice)
        if self._trust is not None and said.plan_sha256 != self._trust.plan_sha256:
            why += "; it has another plan in force than this"
            return Finding("server", "doubt", why, "run `ddm-site fetch`")
        return why if said.ahead_s is None else f"{why}, and the clocks agree"

    def _budget(self, plan: Plan) -> str:
        design = plan.expert.default
        require_policy(self.site.settings, plan, design)
        ledger, planned = open_ledger(self.site, self._log), planned_events(plan)
        events = planned.all if network_of(design.architecture) else [*planned.router]
        sha256 = None if self._trust is None else self._trust.plan_sha256
        entries = ledger.entries()
        begun = any(entry.plan_sha256 == sha256 for entry in entries)
        if not begun:
            ledger.require_budget(events, plan)
        spent = private_events(entry for entry in entries if entry.plan_sha256 != sha256)
        delta = float(plan.privacy.delta)
        cost, before = epsilon_text(events, delta), epsilon_text(spent, delta)
        after = epsilon_text([*spent, *events], delta)
        self.facts["epsilon"] = {"plan": cost, "before": before, "after": after, "delta": delta}
        why = (
            f"the plan costs epsilon {cost} at delta {plan.privacy.delta:f}; {before} is spent on "
            f"other plans, and {after} would be in all"
        )
        if begun:
            why += "; this plan is paid for, in part or as a whole"
        if planned.expert is None and network_of(design.architecture):
            why += ". The expert is trained without noise: no epsilon bounds what its weights tell"
        return why

    def _note_files(self, plan: Plan) -> None:
        """Notes what `train` needs besides images."""
        needed = {
            "--base": plan.expert.base,
            "--autoencoder": plan.data.latent,
            "--text-encoder": plan.data.text,
            "--embedder-weights": plan.centroids,
        }
        names = [name for name, spec in needed.items() if spec is not None]
        if names:
            why = "the plan names public files by their digests, which were not looked at"
            advice = f"have them at hand for `train`: {', '.join(names)}"
            self.findings.append(Finding("public files", "doubt", why, advice))

    def _data(self, plan: Plan) -> str | Finding:
        if self.load is None:
            raise TypeError("there are no images")
        data, report = self.load(plan)
        images = data.reveal()
        if plan.data.text is None or images.captions is None:  # `train` encodes captions first
            require_possible(images, plan, plan.expert.default, RunOptions())
        self._count, self._units = len(images), images.unit_count
        self.facts["data"] = {"images": self._count, "units": self._units}
        doubts, warning = [*report.doubts], delta_warning(plan, self._units)
        if warning is not None:
            doubts.append(warning)
        if doubts:
            advice = "look at them with `ddm-site data check`; `train` asks, or takes --yes"
            return Finding("data", "doubt", "; ".join(doubts), advice)
        return f"{self._count} images are read and fit the plan"

    def _run(self, plan: Plan) -> str | Finding:
        design = plan.expert.default
        if network_of(design.architecture) is None:
            return "nothing is trained: the expert is the release, which takes seconds to minutes"
        try:
            found = forecast(plan, design, self._units)
        except (MemoryError, RuntimeError) as error:  # torch has no other for a lack of memory
            why = f"no step can be taken here: {str(error).strip().partition(chr(10))[0]}"
            advice = "if memory is short, train in parts: `train` takes a --micro-batch"
            return Finding("run", "fails", why, advice)
        self.facts["run"] = found._asdict()
        why = (
            f"about {duration(found.total_s)}: {found.steps:,} steps of {found.step_s:.2g} s, as "
            f"measured here on made-up images; memory {gigabytes(found.memory_bytes)}"
        )
        if found.gpu_bytes:
            why += f", and {gigabytes(found.gpu_bytes)} of the GPU"
        if now() + timedelta(seconds=found.total_s) > plan.expires_at:
            advice = "train on a faster machine, or agree on a later end or fewer steps"
            return Finding("run", "fails", f"{why}; the plan expires before", advice)
        return why

    def _machine(self, plan: Plan) -> None:
        """Looks at disk, memory and GPU, for what the plan's first network needs."""
        data, averages = plan.data, len(plan.training.ema_half_lives)
        cost = training_cost(plan, plan.expert.default.architecture)
        held = cost.training_bytes(averages)
        images = self._count * math.prod(data.pixel_shape)
        if data.latent is not None:
            images += self._count * LATENT_BYTES * math.prod(data.shape)
        # a checkpoint while it takes the place of another; the expert, its draft and its release
        needed = 2 * held + 3 * cost.weights_bytes + images
        of = "checkpoints, bundles and decoded images take up to"
        self._look("disk", lambda: look_at_disk(self.site.path, needed, of=of))
        step = held + cost.pass_bytes(plan.training.batch_size)
        if not torch.cuda.is_available():
            self._note_memory("memory", available_memory(), held, step)
            self.findings.append(Finding("GPU", "ok", "none that torch can use: processors train"))
            return
        self._note_memory("memory", available_memory(), held, held)
        free, _ = torch.cuda.mem_get_info()
        self._note_memory(f"GPU {torch.cuda.get_device_name()}", free, held, step)

    def _note_memory(self, what: str, free: int, held: int, step: int) -> None:
        why = (
            f"{gigabytes(free)} free; the network in training takes {gigabytes(held)} by count, "
            f"with a whole batch {gigabytes(step)}"
        )
        if free < held:
            advice = "close other programs, or ask for a plan with a smaller network"
            self.findings.append(Finding(what, "fails", why, advice))
        elif free < step:
            advice = "give `train` a --micro-batch: fewer images are in memory at once"
            self.findings.append(Finding(what, "doubt", why, advice))
        else:
            self.findings.append(Finding(what, "ok", why))
