"""The blocking client.

    with connect("127.0.0.1:50051") as session:
        action = session.act(obs)                                # an episode begins
        action = session.act(obs, reward)
        session.act(obs, reward, terminated=True)                # it ends

A session asks over one stream. When it breaks, the session comes back by itself within
``timeout_s``: it resumes at the same server or at another one, asks again what is not stored, and
goes on. A session with a ``fallback`` does not wait for that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloom_client.errors import ClientError
from worldloom_client.feed import Feed
from worldloom_client.rows import Action
from worldloom_client.settings import Settings
from worldloom_client.state import (
    ASK_HOLD,
    SessionState,
    fallback_actions,
    one_row,
    plain,
    single,
    stacked,
)
from worldloom_client.wire import Spec

if TYPE_CHECKING:
    from worldloom_client.line import Returner

__all__ = ["Session", "connect"]


def connect(address: str, **settings: Any) -> Session:
    """Open a session.

    Args:
        address: ``HOST:PORT`` of a gateway; several with commas are tried in turn.
        **settings: Fields of :class:`worldloom_client.settings.Settings`.

    Raises:
        ClientError: If a setting cannot be.
        RefusedError: If the gateway says no.
        UnavailableError: If none answers within ``timeout_s``.
    """
    return Session(address, Settings(**settings))


class Session:
    """One session; used by one thread. See the module.

    Args:
        address: As for :func:`connect`.
        settings: How.
    """

    def __init__(self, address: str, settings: Settings) -> None:
        from worldloom_client.line import Line

        self._settings = settings
        self._state = SessionState(settings)
        self._line = Line(address, self._state)
        self._is_closed = False
        self._returner: Returner | None = None
        self._feed: Feed | None = None
        try:
            self._line.reconnect(time.monotonic() + settings.timeout_s)
            if settings.on_hold == "spool" and self._state.is_storing:
                self._feed = Feed(address, settings)
                self._state.dialogue.on_skipped = self._feed.take
        except BaseException:
            self._line.drop()
            raise

    @property
    def description(self) -> Any:
        """What the server says of itself, a ``DescribeResponse``."""
        return self._state.description

    @property
    def version(self) -> tuple[int, int]:
        """Incarnation and update of the weights that acted last; ``(0, 0)`` for none."""
        return self._state.version

    @property
    def warning(self) -> str:
        """What the server said when it opened the session; usually nothing."""
        return self._state.warning

    @property
    def streams(self) -> list[tuple[int, int]]:
        """``(slot, incarnation)`` of the session's rows in replay, at every server that it had."""
        return self._state.streams

    @property
    def obs_specs(self) -> list[Spec]:
        """Arrays of an observation, in order."""
        return self._state.dialogue.obs

    @property
    def action_specs(self) -> list[Spec]:
        """Arrays of an action, in order."""
        return self._state.dialogue.action

    @property
    def rows_skipped(self) -> int:
        """Rows that were left out of replay: with ``act`` while it wanted none or the line was
        cut, with ``spool`` those for which there was no room.
        """
        spooled = 0 if self._feed is None else self._feed.rows_skipped
        return self._state.dialogue.rows_skipped + spooled

    @property
    def spooled_bytes(self) -> int:
        """Bytes of rows that are to be pushed yet."""
        return 0 if self._feed is None else self._feed.waiting_bytes

    @property
    def is_cut_off(self) -> bool:
        """True while the fallback acts, because no answer came."""
        return self._returner is not None

    @property
    def stored(self) -> list[int]:
        """Per env the rows that are stored or were left out, as far as is known here."""
        return self._state.dialogue.stored

    def act(
        self,
        obs: Any,
        reward: float = 0.0,
        *,
        terminated: bool = False,
        truncated: bool = False,
        env: int = 0,
    ) -> Any:
        """The action for one env.

        Args:
            obs: An array, or a mapping where the space is a dictionary.
            reward: Of the way here; of no meaning in the first row of an episode.
            terminated, truncated: This is the last observation of its episode; the action that
                comes back is of no meaning, and the next question begins an episode.
            env: Which of the session's envs.

        Returns:
            As ``obs``: an array, or a mapping. Continuous actions are in [-1, 1], discrete ones
            count from 0.

        Raises:
            WireError, RefusedError: If the question is wrong.
            UnavailableError: If no server answers within ``timeout_s``.
        """
        rows = one_row(obs, self.obs_specs)
        flags = (np.array([terminated]), np.array([truncated]))
        return plain(self.act_many(rows, np.array([reward], np.float64), *flags, envs=[env]))

    def act_many(
        self,
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        *,
        envs: Sequence[int] | None = None,
    ) -> Action:
        """Actions of several envs in one question, which costs little more than one env.

        Args:
            obs: Per key ``[n, *shape]``.
            reward, terminated, truncated: ``[n]``.
            envs: Which; by default all, in order.

        Returns:
            Per key ``[n, *shape]``.

        Raises:
            WireError, RefusedError, UnavailableError: As :meth:`act`.
        """
        self._check_open()
        talk = self._state.dialogue
        asked = list(range(self._settings.num_envs)) if envs is None else list(envs)
        if not self._is_back():
            ran = self._fallback(obs, asked)
            talk.own(asked, obs, reward, terminated, truncated, ran)
            return stacked(ran)
        is_held = self._wait_while_held()
        request = talk.question(asked, obs, reward, terminated, truncated, skip_store=is_held)
        if self._settings.fallback is None:
            self._line.ask_until(request)
        elif not self._line.ask_once(request, self._settings.answer_within_s):
            ran = self._fallback(obs, asked)
            talk.instead(request, ran)
            self._come_back()
            return stacked(ran)
        return talk.actions(request)

    def executed(self, action: Any, *, source: str = "human", env: int = 0) -> None:
        """Tell what ran in place of the last answer of ``env``; replay stores that, and who chose
        it.

        Args:
            action: As :meth:`act` returns it.
            source: ``human``, ``safety`` or ``script``.
            env: Which.

        Raises:
            WireError: If it is no action of the policy.
        """
        named = single(action, "action", self.action_specs)
        self._state.dialogue.executed(env, named, source)

    def abandon(self, env: int = 0) -> None:
        """The episode of ``env`` ends without a last observation and counts as truncated."""
        self._state.dialogue.abandon(env)

    def keep_alive(self) -> None:
        """Renew the lease while there is nothing to ask."""
        self._check_open()
        if self._is_back():
            self._line.ask_until(ASK_HOLD)

    def close(self, within_s: float | None = None) -> None:
        """End the session: what is open is stored.

        Args:
            within_s: How long rows in a spool may take to be pushed; by default ``timeout_s``. The
                rest stays there for the next process.

        Raises:
            RefusedError: If the run refused rows that were pushed.
        """
        if self._is_closed:
            return
        self._is_closed = True
        is_back = self._returner is None or self._returner.stop()
        self._state.dialogue.complete()
        if is_back:
            self._line.close_session()
        if self._feed is not None:
            self._feed.close(within_s)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(0.0 if kind is not None else None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientError("the session is closed; open another one")

    def _wait_while_held(self) -> bool:
        """True when this row is to stay out of the session's rows."""
        while (hold_s := self._state.hold_s) > 0:
            if self._settings.on_hold != "wait":
                return True
            time.sleep(hold_s)
            self._line.ask_until(ASK_HOLD)
        return False

    def _is_back(self) -> bool:
        """False while the line is cut.

        Raises:
            ClientError: If it never comes back.
        """
        if self._returner is not None and self._returner.is_done:
            self._returner.check()
            self._returner = None
        return self._returner is None

    def _come_back(self) -> None:
        from worldloom_client.line import Returner

        self._returner = Returner(self._line)

    def _fallback(self, obs: Mapping[str, np.ndarray], envs: Sequence[int]) -> list[Action]:
        return fallback_actions(self._settings, obs, envs, self.action_specs)
