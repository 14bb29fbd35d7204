"""Candidates: every choice of every unit of a model, rounded once and kept; what probes ask of them.

One walk over the blocks: the factor of a tap's second moments is made once and serves all choices of all its readers. Results lie
in the statistics store, so that another budget, another solver or the run itself takes them from there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.allocation.equal import digest
from bitwright.calibrate.base import Data
from bitwright.calibrate.data import Windows
from bitwright.calibrate.gradients import OUTPUT
from bitwright.calibrate.stats import Known
from bitwright.calibrate.store import Store
from bitwright.checkpoint import Checkpoint, fill, skeleton
from bitwright.errors import BadRequest, in_place_of
from bitwright.matrix import Solved, key
from bitwright.menus import Menu
from bitwright.plan import Planned
from bitwright.progress import Progress, silent
from bitwright.sites import Site, sites
from bitwright.terms.base import decode
from bitwright.trial import Trial
from bitwright.wiring import Wiring


@dataclass(eq=False)
class RoundedCandidates:
    """`windows`: what divergences are measured on (None: a probe that asks for one is refused)."""

    source: Checkpoint
    wiring: Wiring
    menu: Menu
    needs: Sequence[str]
    store: Store
    windows: Data | None
    device: torch.device
    progress: Progress = silent
    trial: Trial | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        return len(self.menu.units), len(self.menu.choices)

    def possible(self, unit: int, choice: int) -> bool:
        return bool(self.menu.possible[unit, choice])

    def errors(self, unit: int, choice: int) -> list[Float[Tensor, "out"]]:
        found = [(name, self.solved(name, choice)) for name in self.menu.units[unit]]
        return [solved.errors if solved else torch.zeros(len(self.gradients(unit)[0])) for _, solved in found]

    def gradients(self, unit: int) -> list[Float[Tensor, "out"]]:
        return [self.store.site(name)[OUTPUT] for name in self.menu.units[unit]]

    def domains(self) -> "list[RoundedCandidates]":
        """The same candidates, once for each domain of the windows. Raises BadRequest where there are not two."""
        text = self.windows if isinstance(self.windows, Windows) else None
        there = [] if text is None else text.domain.unique().tolist()
        if text is None or len(there) != 2:
            raise BadRequest(
                f"This allocation scores two domains of text and finds {len(there)}; give --data stdlib, or two files of text."
            )
        return [replace(self, windows=of_domain(text, d), trial=None) for d in there]

    def divergence(self, chosen: Mapping[int, int]) -> float:
        return float(self.windows_kl(chosen).mean())

    def measured(self, choice: Sequence[int]) -> float:
        """The KL of the model in which every unit has its choice: the upper end of its interval over the windows (95 %, one side).
        Equal codes are measured once, in this run or another."""
        chosen = dict(enumerate(choice))
        told = [(name, self.codes(name, c)) for u, c in chosen.items() for name in self.menu.units[u]]
        mark = hashlib.sha256(json.dumps([told, self.windows and self.windows.sha256]).encode()).hexdigest()[:32]
        path = self.store.folder / "measured" / f"{mark}.json"
        if path.is_file():
            return float(json.loads(path.read_text()))
        kl = self.windows_kl(chosen)
        found = float(kl.mean() + 1.645 * kl.std() / len(kl) ** 0.5)
        with in_place_of(path) as partial:
            partial.write_text(json.dumps(found))
        return found

    def codes(self, name: str, choice: int) -> str:
        """What is stored of a site under a choice, as a digest."""
        found = self.solved(name, choice)
        return "as it is" if found is None else digest(t for term in found.terms for _, t in sorted(term.tensors().items()))

    def windows_kl(self, chosen: Mapping[int, int]) -> Float[Tensor, "windows"]:
        if self.trial is None:
            if self.windows is None:
                raise BadRequest("This probe measures the model on text, and there is none; give some with --data.")
            if not isinstance(self.windows, Windows):
                raise BadRequest("A KL of the whole model is measured on text only so far; choose another --allocation.")
            self.trial = Trial.of(self.source, self.wiring, self.windows, self.device)
        pairs = [(name, self.solved(name, c)) for u, c in chosen.items() for name in self.menu.units[u]]
        return self.trial.kl({name: decode(solved.terms) for name, solved in pairs if solved is not None})

    def solved(self, name: str, choice: int) -> Solved | None:
        """A site under a choice, from the store; None where the choice leaves it as it is."""
        planned = self.menu.planned[name][choice]
        return None if planned is None else Solved.read(self.store.codes(key(name, planned, self.needs, None)))

    def round(self) -> None:
        """Round what the store does not hold yet, block by block."""
        model: Any = skeleton(self.source.config)
        blocks = self.wiring.block_list(model)
        for i, block in enumerate(blocks):
            self.progress("rounding every choice", i, len(blocks))
            prefix = f"{self.wiring.blocks}.{i}."
            here: dict[str, Site] = {}
            for tap in self.store.taps(i):
                missing = [(n, p) for n in tap.readers if n in self.menu.planned for p in self.missing(n)]
                if missing and not here:
                    fill(block, self.source, prefix[:-1], self.device)
                    here = sites(block, prefix)
                moments = [n for n in self.needs if n in self.store.names(tap)]
                known = self.store.known(tap, moments).to(self.device) if missing else Known()
                for name, planned in missing:
                    mine = self.store.with_own(name, known, self.needs, self.device)
                    path = self.store.codes(key(name, planned, self.needs, None))
                    Solved.of(here[name].matrix(), planned, mine, None).write(path)
            block.to("meta")
        self.progress("rounding every choice", len(blocks), len(blocks))

    def missing(self, name: str) -> list[Planned]:
        plans = [p for p in self.menu.planned[name] if p is not None]
        return [p for p in plans if not self.store.codes(key(name, p, self.needs, None)).is_file()]


def of_domain(text: Windows, domain: int) -> Windows:
    mine = text.domain == domain
    titles = tuple(title for title, m in zip(text.titles, mine.tolist()) if m)
    return replace(text, ids=text.ids[mine], domain=text.domain[mine], titles=titles, bytes=text.bytes[mine])
