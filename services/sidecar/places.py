"""Which upstream a model's name means, and how it is."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from libs.upstreams.config import LEXI
from libs.upstreams.errors import UnknownUpstream
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import UpstreamStatus
from libs.upstreams.upstream import Upstream

ModelName: TypeAlias = Literal["hermes", "phi3"]

NAMES: tuple[ModelName, ...] = ("hermes", "phi3")


@dataclass(frozen=True, slots=True)
class Places:
    """The entries `hermes` and `phi3` of the file of upstreams as it is now; `lexi` stands in for one that is missing.

    `window` is the most tokens that prompt and answer have together; an entry with a shorter context has its own.
    """

    upstreams: Upstreams
    window: int

    def upstream_of(self, name: ModelName) -> str:
        """The entry that answers for a model."""
        try:
            self.upstreams.model_of(name)
        except UnknownUpstream:
            return LEXI
        return name

    def stands_in(self, name: ModelName) -> bool:
        """Whether `lexi` answers for it."""
        return self.upstream_of(name) == LEXI

    def status_of(self, name: ModelName) -> UpstreamStatus:
        """How the entry is that answers for a model."""
        wanted = self.upstream_of(name)
        return next(status for status in self.upstreams.status() if status.name == wanted)

    def entered(self, name: ModelName) -> Upstream | None:
        """The upstream itself; None where this process has no share of it."""
        wanted = self.upstream_of(name)
        found = self.upstreams.places(self.upstreams.model_of(wanted), allowed=lambda _: False)
        return next((place for place in found if place.entry.name == wanted), None)

    def window_of(self, name: ModelName) -> int:
        """Tokens that prompt and answer may have together there."""
        place = self.entered(name)
        context = None if place is None else place.entry.context
        return self.window if context is None else min(self.window, context)
