"""Taking a bad version back: guardrails of running experiments, looked at all the time, and the shares of their arms.

Every process does this. That a version is taken back once is Postgres' doing: the activation is only written where
nobody, neither a person nor another process, activated anything since the experiment that was judged. So a person's
word always stands. Nothing is ever promoted here.
"""

from collections.abc import Mapping, Sequence

import structlog
from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.alerts import raise_alert
from libs.exposures.counts import ArmUnits, given_lately, unit_counts
from libs.exposures.guardrails import GuardrailState, arms_without, evaluate
from libs.exposures.looks import counted
from libs.llm.activations import activate
from libs.llm.experiments import Experiment
from libs.llm.in_force import Activation, InForce, arms_as_text
from libs.llm.prompts import PromptSource
from libs.statistics.sample_ratio import SampleRatio, sample_ratio

EVERY_S = 5.0
WHO = "guardrail"
LOOKS_PER_COUNT = 12
"""Rounds from one count of units to the next: to count them costs more than all guardrails do."""
LATELY_MIN = 5
"""How many minutes back phases are looked for that are not in force here. One that was in force here is known for twice
as long, so that processes may differ for these minutes, while they are restarted or follow an activation."""
FEWEST_UNITS = 50
GROWTH = 1.5
"""How many times as many units there must be until their shares are looked at again. The check is made for one look; at
so few, two dozen up to a million units, about one sound experiment of fifty is told of in its life."""

TAKEN_BACK = Counter(
    "lexi_jobs_versions_taken_back_total", "Versions that a guardrail took back, as seen by this process.", ["key"]
)

log = structlog.get_logger(__name__)


class Guardrails:
    """Looks at every running experiment. `prompts` says which run."""

    def __init__(self, engine: AsyncEngine, prompts: PromptSource) -> None:
        self._engine = engine
        self._prompts = prompts
        self._round = 0
        self._looked: dict[tuple[str, str], int] = {}
        self._said: dict[str, str] = {}
        self._ruled: dict[tuple[str, str], int] = {}
        self._told: set[tuple[str, str]] = set()

    async def step(self) -> None:
        """Take back what breaks its guardrails, and tell of shares that chance does not explain.

        Every key is looked at, whatever breaks at another; the first failure is raised at the end. A version that was
        taken back is in force nowhere once its activation is read, which each process does every two seconds.
        """
        now, count_units = self._prompts.now, self._round % LOOKS_PER_COUNT == 0
        self._round += 1
        failures: list[Exception] = []
        for key, found in now.in_force.items():
            try:
                await self._look(key, found, count_units=count_units)
            except Exception as error:  # noqa: BLE001 - logged, and raised below
                failures.append(error)
                self._say(key, "guardrails_failed", f"{type(error).__name__}: {error}".splitlines()[0])
        if count_units:
            await self.look_for_others(now.in_force)
        if failures:
            raise failures[0]

    async def _look(self, key: str, found: InForce, *, count_units: bool) -> None:
        """Everything there is to do about one key.

        Where an activation rules that this process cannot follow, such as of a version its file lacks, what it has in
        force is not what is given. To judge by it could overwrite a person's word.
        """
        if found.experiment is not None:
            self._ruled[key, found.experiment.phase] = self._round
        if not _followed(found):
            self._say(key, "guardrails_off", found.trouble or "")
            return
        await self.take_back(key, found)
        if count_units:
            await self.compare_shares(key, found)
        self._said.pop(key, None)

    def _say(self, key: str, event: str, reason: str) -> None:
        """The same is said once, not every five seconds."""
        if self._said.get(key) != reason:
            log.error(event, prompt_key=key, reason=reason)
        self._said[key] = reason

    async def take_back(self, key: str, found: InForce) -> Activation | None:
        """Judge one experiment; returns the activation that was written, None where there was no need or no right."""
        experiment = found.experiment
        if experiment is None or not _followed(found):
            return None
        async with self._engine.begin() as connection:
            states = evaluate(experiment, await counted(connection, key, experiment))
            broken = [state for state in states if state.breached]
            if not broken:
                return None
            made = await self._activate(connection, key, found, experiment=experiment, broken=broken)
        gone = sorted({state.arm for state in broken})
        if made is None:
            log.info("guardrail_came_second", prompt_key=key, versions=gone, phase=experiment.phase)
            return None
        TAKEN_BACK.labels(key).inc()
        log.warning(
            "guardrail_took_back",
            prompt_key=key,
            versions=gone,
            active=made.version,
            arms=arms_as_text(made.arms),
            activation=made.id,
            reason=made.why,
        )
        return made

    async def _activate(
        self,
        connection: AsyncConnection,
        key: str,
        found: InForce,
        *,
        experiment: Experiment,
        broken: Sequence[GuardrailState],
    ) -> Activation | None:
        """Write the activation and its alert together, or neither where another activation came first."""
        gone = sorted({state.arm for state in broken})
        why = "; ".join(state.sentence for state in broken)
        made = await activate(
            connection,
            key=key,
            version=found.version,
            arms=arms_without(experiment.arms, gone, active=found.version),
            who=WHO,
            why=why,
            ground=found.ground,
            expected=found.last_id,
        )
        if made is not None:
            words = (
                f"Prompt {key}: version {', '.join(gone)} was taken back and {found.version} is given instead. {why}"
            )
            await raise_alert(connection, key=f"guardrail:{key}:{made.id}", kind="guardrail", text=words)
        return made

    async def compare_shares(self, key: str, found: InForce) -> None:
        """Tell the desk, once per phase and check, where the arms did not get the shares they were meant to get."""
        experiment = found.experiment
        if experiment is None:
            return
        async with self._engine.begin() as connection:
            counts = await unit_counts(connection, key, experiment.phase)
            for check, units in _checks(counts).items():
                seen = sum(units.values())
                if seen < max(FEWEST_UNITS, self._looked.get((experiment.phase, check), 0)):
                    continue
                self._looked[experiment.phase, check] = int(seen * GROWTH)
                ratio = sample_ratio(units, dict(experiment.arms))
                if ratio is not None and ratio.alarm:
                    await _tell(connection, key, experiment, check=check, ratio=ratio)

    async def look_for_others(self, in_force: Mapping[str, InForce]) -> None:
        """Tell the desk, once per phase, where forecasts are given arms by an experiment that is unknown here.

        That is where `LLM_AB_BUCKETS`, or the file, is another one in `services.forecast`: nobody would guard it. What
        was in force here lately is no stranger, nor is anything before this process is as old as that.
        """
        rounds = int(2 * LATELY_MIN * 60 / EVERY_S)
        if self._round <= rounds:
            return
        async with self._engine.begin() as connection:
            for key, phase in await given_lately(connection, minutes=LATELY_MIN):
                if self._ruled.get((key, phase), -rounds) >= self._round - rounds:
                    continue
                here = in_force[key].experiment if key in in_force else None
                ruling = "no experiment" if here is None else here.phase
                words = (
                    f"Prompt {key}: forecasts are given arms by {phase}, and services.jobs knows of {ruling}. Nobody "
                    "guards it: give LLM_AB_BUCKETS and the prompts' file alike to every process, and restart them."
                )
                if (key, phase) not in self._told:
                    log.error("experiment_not_in_force_here", prompt_key=key, phase=phase, here=ruling)
                self._told.add((key, phase))
                await raise_alert(connection, key=f"unguarded:{key}:{phase}", kind="unguarded", text=words)


def _followed(found: InForce) -> bool:
    """Whether this process gives what was activated last; a row that nobody can read, above one that rules, is none."""
    return found.trouble is None or found.source == "activation"


def _checks(counts: Mapping[str, ArmUnits]) -> dict[str, dict[str, int]]:
    """What each check of the sample ratio counts: fewer units have an outcome than an arm, and later ones."""
    return {
        "assignment": {arm: each.assigned for arm, each in counts.items()},
        "outcome": {arm: each.settled for arm, each in counts.items()},
    }


async def _tell(
    connection: AsyncConnection, key: str, experiment: Experiment, *, check: str, ratio: SampleRatio
) -> None:
    words = (
        f"Prompt {key}: at {check} the arms of {experiment.phase} do not have the shares they were meant to have "
        f"(chi-square {ratio.chi_square:.1f}, p = {ratio.p_value:.2g}). Trust no comparison until it is known why."
    )
    log.error("sample_ratio_mismatch", prompt_key=key, phase=experiment.phase, check=check, p=ratio.p_value)
    await raise_alert(connection, key=f"sample_ratio:{key}:{experiment.phase}:{check}", kind="sample_ratio", text=words)
