"""Answers as they travel."""

from __future__ import annotations

from typing import Any

from worldloom_client.wire import encode_tensor, message
from worldloom_dist.gateway.contract import Contract, version_message
from worldloom_dist.gateway.memory import Answer
from worldloom_dist.gateway.session import Session

__all__ = ["act_response", "open_response"]

ActResponse = message("ActResponse")
EnvPosition = message("EnvPosition")


def act_response(answer: Answer, contract: Contract) -> Any:
    """The ``ActResponse`` of an answer."""
    response = ActResponse(
        action=[encode_tensor(answer.action[spec.name]) for spec in contract.action]
        if answer.action
        else [],
        version=version_message(answer.version),
        carry_reset=answer.carry_reset.tobytes(),
        queue_us=int(answer.queue_s * 1e6),
        infer_us=int(answer.model_s * 1e6),
        stored=answer.stored,
    )
    if answer.hold_s:
        response.hold.FromMilliseconds(int(answer.hold_s * 1000))
    return response


def open_response(secret: bytes, session: Session, contract: Contract, warning: str) -> Any:
    """The ``OpenResponse`` of a session."""
    response = message("OpenResponse")(
        secret=secret,
        slot=session.claim.slot,
        incarnation=session.claim.incarnation,
        position=[
            EnvPosition(env=env, stored=stored, next_step=step)
            for env, (stored, step) in enumerate(session.positions)
        ],
        warning=warning,
    )
    response.lease.FromMilliseconds(int(contract.limits.lease_s * 1000))
    return response
