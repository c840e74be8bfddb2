"""What the server knows after each round, kept in a file: a run that was killed goes on from it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddm_fed.records import Plan
from ddm_fedavg.task import Settings, new_weights

Weights = dict[str, Tensor]


@dataclass
class Rounds:
    """The rounds that were done.

    Attributes:
        file: Where this is kept.
        identity: What was agreed; the file of another training is not continued.
        weights: The last average of the sites' weights.
        average: That of the rounds.
        done: How many rounds there were.
        facts: What they cost, and their losses.
    """

    file: Path
    identity: str
    weights: Weights
    average: Weights
    done: int
    facts: dict[str, Any]

    @classmethod
    def start(cls, settings: Settings, plan: Plan) -> Self:
        """Returns what was done before, or the first weights."""
        file = Path(settings.out).with_suffix(".rounds.safetensors")
        agreed = {**asdict(settings), "out": "", "plan": plan.model_dump(mode="json")}
        identity = hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()
        if file.exists():
            with safe_open(file, "pt") as opened:
                told = json.loads(opened.metadata()["rounds"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if told["identity"] == identity:
                parts = [_under(prefix, tensors) for prefix in ("weights.", "average.")]
                return cls(file, identity, *parts, told["done"], told["facts"])
        weights = new_weights(plan, settings.seed)
        average = {name: value.clone() for name, value in weights.items()}
        facts = {"losses": {}, "cpu_s": 0.0, "wall_s": 0.0}
        return cls(file, identity, weights, average, 0, facts)

    def save(self) -> None:
        """Writes the file as a whole, or leaves the one that is there."""
        told = {"identity": self.identity, "done": self.done, "facts": self.facts}
        tensors = {f"weights.{name}": value for name, value in self.weights.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        part = self.file.with_suffix(".part")
        save_file(plain(tensors), part, metadata={"rounds": json.dumps(told)})
        part.replace(self.file)


def plain(weights: Weights) -> Weights:
    """Returns tensors that share no memory, as safetensors wants them."""
    return {name: value.detach().contiguous().clone() for name, value in weights.items()}


def _under(prefix: str, tensors: Weights) -> Weights:
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
