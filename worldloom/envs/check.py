"""Look an environment over before training on it: does it keep the rules, what does it look like to
an agent, how fast is it.

The env is first stepped in a process of its own, so that one that hangs or crashes is reported and
not suffered; then in this process, for speed and memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from worldloom.core.exceptions import (
    ConfigurationError,
    EnvFailureError,
    MissingDependencyError,
    WorldLoomError,
)
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.envs.check_spaces import Finding, image_findings, space_findings
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import build_env, make_env
from worldloom.envs.vector import EnvStep, VectorEnv, sample_actions

__all__ = ["EnvReport", "Finding", "check_env"]

LARGE_VALUE = 1e3
LARGE_REWARD = 1e6
GROWTH_MB = 64.0
SEEDING_STEPS = 60
SPACE_STEPS = 200


@dataclass
class EnvReport:
    """What was found.

    Attributes:
        spec: What the env gives and takes.
        findings: What to change.
        facts: Numbers: steps, episodes, returns, lengths, rewards, steps per second, memory.
    """

    spec: EnvSpec
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """True when no finding is an error."""
        return not any(finding.is_error for finding in self.findings)

    def lines(self) -> list[str]:
        """The report for a person."""
        lines = [f"env {self.spec.name}: {'good' if self.is_good else 'NOT good'} to train on", ""]
        lines += self._spec_lines() if self.spec.obs else []
        if self.facts:
            lines += ["measured", *(f"  {name:<20} {value}" for name, value in self.facts.items())]
        lines += ["findings" if self.findings else "nothing to change"]
        return lines + [
            f"  {'ERROR' if finding.is_error else 'advice'}: {finding.text}"
            for finding in self.findings
        ]

    def _spec_lines(self) -> list[str]:
        lines = ["observations"]
        lines += [
            f"  {key:<20} {_describe(spec):<28} -> {_encoder(spec)}"
            for key, spec in self.spec.obs.items()
        ]
        lines += ["actions"]
        lines += [f"  {key:<20} {_describe(spec)}" for key, spec in self.spec.action.items()]
        agents = (
            "dreamerv3, mlp, r2dreamer, tdmpc2"
            if self.spec.has_continuous_actions_only
            else "dreamerv3, mlp, r2dreamer (tdmpc2 takes no discrete actions)"
        )
        lines += [f"agents that can act here: {agents}", "settings"]
        return lines + [f"  {name:<20} {value}" for name, value in self.spec.settings.items()]


def check_env(
    config: EnvConfig, *, steps: int = 1000, seed: int = 0, limits: EnvLimits | None = None
) -> EnvReport:
    """Step an env with random actions and report.

    Args:
        config: Which env.
        steps: Decisions in this process; a fifth as many are made in a supervised process before.
        seed: Of env and actions.
        limits: Deadlines of the supervised process.

    Raises:
        ConfigurationError, MissingDependencyError: If the env cannot be made at all.
    """
    if steps < 1:
        raise ConfigurationError(f"steps must be >= 1, got {steps}")
    if seed < 0:
        raise ConfigurationError(f"seed must be >= 0, got {seed}")
    broken = _try_in_process(config, max(1, steps // 5), seed, limits or EnvLimits(max_failures=1))
    if broken is not None:
        return broken
    env = make_env(config, seed=seed, is_exact=False)
    report = EnvReport(env.spec)
    try:
        _play(env, steps, seed, report)
        report.findings += _seeding_findings(config, seed)
        if not config.ale_vector:
            report.findings += space_findings(config, steps=min(steps, SPACE_STEPS), seed=seed)
    except (Exception, SystemExit) as error:  # the edge of foreign code
        report.findings.append(Finding(True, _text(error)))
    finally:
        env.close()
    report.findings += image_findings(env.spec)
    return report


def _try_in_process(
    config: EnvConfig, steps: int, seed: int, limits: EnvLimits
) -> EnvReport | None:
    """A report if the env fails under supervision, else None."""
    try:
        env = make_env(config, seed=seed, limits=limits, processes=True, is_exact=False)
    except EnvFailureError as error:
        if _reason(error).startswith("raised"):
            # raises the same here, where its traceback can be had
            build_env(config.resolved()).close()
        return EnvReport(
            EnvSpec(name=config.env, obs={}, action={}), [Finding(True, _reason(error))]
        )
    try:
        rngs = _generators(env, seed)
        env.reset()
        for _ in range(steps):
            env.step(sample_actions(env.spec, rngs))
    except EnvFailureError as error:
        text = (
            f"{_reason(error)}; mend the env: in training it would be rebuilt and the episode lost"
        )
        return EnvReport(env.spec, [Finding(True, text)])
    except (ConfigurationError, MissingDependencyError):
        raise
    # the edge of foreign code: a vector env steps in this process
    except (Exception, SystemExit) as error:
        text = (
            f"raised: {_text(error)}; mend the env: in training it would end its worker "
            "with all its envs"
        )
        return EnvReport(env.spec, [Finding(True, text)])
    finally:
        env.close()
    return None


def _reason(error: EnvFailureError) -> str:
    """What happened to the only env, without the words for the case that it has company."""
    return str(error).rpartition("the last failure: env 0 ")[2]


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, WorldLoomError) else f"{type(error).__name__}: {error}"


class _Statistics:
    """Adds up what one env gives."""

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.ends = {"terminated": 0, "truncated": 0}
        self.extremes: dict[str, float] = {}
        self._return = 0.0
        self._length = 0

    def enter(self, row: EnvStep) -> None:
        """Add the row of env 0."""
        for key, value in row.obs.items():
            if value.dtype != np.uint8:
                self.extremes[key] = max(self.extremes.get(key, 0.0), float(np.abs(value).max()))
        if row.is_first[0]:
            self._return = 0.0
            self._length = 0
            return
        self.rewards.append(float(row.reward[0]))
        self._return = self._return + self.rewards[-1]
        self._length = self._length + 1
        if row.is_last[0]:
            self.returns.append(self._return)
            self.lengths.append(self._length)
            self.ends["terminated" if row.terminated[0] else "truncated"] += 1


def _play(env: VectorEnv, steps: int, seed: int, report: EnvReport) -> None:
    statistics = _Statistics()
    rngs = _generators(env, seed)
    row = env.reset()
    statistics.enter(row)
    started = time.perf_counter()
    memory_mb = _memory_mb()
    was_last = False
    out_of_order = 0
    for step in range(steps):
        if step == steps // 5:
            memory_mb = _memory_mb()
        row = env.step(sample_actions(env.spec, rngs))
        if not row.live[0]:
            continue
        out_of_order += int(bool(row.is_first[0]) != was_last)
        was_last = bool(row.is_last[0])
        statistics.enter(row)
    seconds = time.perf_counter() - started
    faults = env.drain_faults()
    if faults:
        report.findings.append(
            Finding(True, f"the env failed {len(faults)} times, first: {faults[0].detail}")
        )
    elif out_of_order:
        report.findings.append(
            Finding(True, f"{out_of_order} rows are not where an episode's end or begin puts them")
        )
    report.facts.update(_facts(statistics, steps * env.num_envs, seconds, env.spec.action_repeat))
    report.findings += _play_findings(statistics, steps, _memory_mb() - memory_mb, env.spec)


def _facts(statistics: _Statistics, steps: int, seconds: float, repeat: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "decisions": len(statistics.rewards),
        "decisions per second": round(steps / seconds),
    }
    if repeat > 1:
        facts["env steps per second"] = round(steps * repeat / seconds)
    facts |= {"memory of process": f"{_memory_mb():.0f} MB", "episodes": len(statistics.returns)}
    if statistics.returns:
        facts["ends"] = ", ".join(f"{count} {name}" for name, count in statistics.ends.items())
        facts["return"] = _spread(statistics.returns)
        facts["length"] = _spread(statistics.lengths)
    facts["reward"] = _spread(statistics.rewards)
    return facts


def _play_findings(
    statistics: _Statistics, steps: int, growth_mb: float, spec: EnvSpec
) -> list[Finding]:
    advice = []
    if not statistics.returns:
        remedy = (
            "check with more --steps"
            if spec.episode_limit
            else "give the env a limit with --env.time-limit N"
        )
        advice.append(f"no episode ended in {steps} decisions; {remedy}")
    if statistics.rewards and not np.any(statistics.rewards):
        advice.append(
            "every reward was 0 under random actions; a sparse reward is hard to learn from"
        )
    for key, extreme in statistics.extremes.items():
        if extreme > LARGE_VALUE:
            advice.append(
                f"observation {key!r} reaches {extreme:.3g}; scale it inside the env to about 1"
            )
    greatest = max(map(abs, statistics.rewards), default=0.0)
    if greatest > LARGE_REWARD:
        advice.append(
            f"rewards reach {greatest:.3g}; scale them inside the env, because losses "
            "of such numbers overflow"
        )
    if spec.may_terminate is False and statistics.ends["terminated"]:
        advice.append("the env terminated although it says that it never does (may_terminate)")
    if growth_mb > GROWTH_MB:
        advice.append(
            f"memory grew by {growth_mb:.0f} MB; the env may leak, and a long run "
            "would be killed for it"
        )
    return [Finding(False, text) for text in advice]


def _seeding_findings(config: EnvConfig, seed: int) -> list[Finding]:
    try:
        first, again, other = (_trace(config, s) for s in (seed, seed, seed + 1))
    except (Exception, SystemExit) as error:  # the edge of foreign code
        return [
            Finding(True, f"a second env could not be stepped beside the first: {_text(error)}")
        ]
    if not _equal(first, again):
        return [
            Finding(
                False,
                "equal seeds gave different rows; take every draw from "
                "self.np_random, which reset(seed=...) seeds",
            )
        ]
    if _equal(first, other):
        return [
            Finding(
                False,
                "different seeds gave equal rows; if the env draws anything, let "
                "reset(seed=...) seed it",
            )
        ]
    return []


def _trace(config: EnvConfig, seed: int) -> list[Mapping[str, np.ndarray]]:
    env = make_env(config, seed=seed, is_exact=False)
    rngs = _generators(env, 0)
    try:
        rows = [
            env.reset(),
            *(env.step(sample_actions(env.spec, rngs)) for _ in range(SEEDING_STEPS)),
        ]
    finally:
        env.close()
    return [{**row.obs, "/reward": row.reward} for row in rows]


def _generators(env: VectorEnv, seed: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, index]) for index in range(env.num_envs)]


def _equal(one: list[Mapping[str, np.ndarray]], two: list[Mapping[str, np.ndarray]]) -> bool:
    return all(np.array_equal(a[key], b[key]) for a, b in zip(one, two, strict=True) for key in a)


def _describe(spec: ArraySpec) -> str:
    if spec.is_discrete:
        return f"choice of {' x '.join(map(str, spec.num_classes))}"
    return f"{spec.dtype} {'x'.join(map(str, spec.shape)) or 'scalar'}"


def _encoder(spec: ArraySpec) -> str:
    return (
        f"convolutions over {spec.shape[2]} channels"
        if spec.is_image
        else f"dense layers over {spec.size} numbers"
    )


def _spread(values: list[Any]) -> str:
    array = np.asarray(values, np.float64)
    return (
        f"mean {array.mean():.4g}, std {array.std():.4g}, min {array.min():.4g}, max "
        f"{array.max():.4g}"
    )


def _memory_mb() -> float:
    """Resident memory of this process now."""
    return float(psutil.Process().memory_info().rss) / 1e6
