"""The gateway's gRPC methods. Whatever comes, the client gets a status code and one sentence; a
defect of ours is logged here and called one there.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from worldloom_client.wire import PACKAGE, SESSION_KEY, message
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.gateway.refusal import RefusalError

__all__ = ["Authenticator", "policy_service", "replay_service"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
ActStreamRequest = message("ActStreamRequest")
ActStreamResponse = message("ActStreamResponse")
OPEN_METHODS = ("/grpc.health.v1.Health/",)
"""Methods that need no token."""


class Authenticator(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets only those in who show the token.

    Args:
        token: What ``authorization: Bearer`` must say.
    """

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Look at the metadata of a call before it is answered."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN_METHODS):
            return handler
        given = _metadata(handler_call_details.invocation_metadata, "authorization")
        if hmac.compare_digest(given, self._expected):
            return handler
        return _refuse_all("authorization: the bearer token is missing or wrong")


def policy_service(gateway: Gateway) -> grpc.GenericRpcHandler:
    """The methods of ``PolicyService``."""
    service = _PolicyService(gateway)
    unary = {
        "Describe": service.describe,
        "Open": service.open,
        "Act": service.act,
        "Close": service.close,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(call, response_serializer=_to_bytes)
        for name, call in unary.items()
    }
    handlers["ActStream"] = grpc.stream_stream_rpc_method_handler(
        service.act_stream, response_serializer=_to_bytes
    )
    return grpc.method_handlers_generic_handler(f"{PACKAGE}.PolicyService", handlers)


def replay_service(gateway: Gateway) -> grpc.GenericRpcHandler:
    """The method of ``ReplayService``."""
    handler = grpc.stream_stream_rpc_method_handler(
        _ReplayService(gateway).push, response_serializer=_to_bytes
    )
    return grpc.method_handlers_generic_handler(f"{PACKAGE}.ReplayService", {"Push": handler})


class _ReplayService:
    """See ``_PolicyService``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def push(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        try:
            pushing = self._gateway.pushing(_secret(context))
            async for data in requests:
                async for answer in pushing.take(_parse("PushRequest", data)):
                    yield answer
        except RefusalError as error:
            await _abort(self._gateway, context, error)
        except Exception:  # the edge of this process: the client shall not see a traceback
            logger.exception("a chunk could not be taken")
            await _abort(self._gateway, context, RefusalError("INTERNAL", INTERNAL))


class _PolicyService:
    """Requests arrive as bytes, so that what cannot be parsed is refused in our words."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def describe(self, _: bytes, context: Any) -> Any:
        return await self._answer(context, self._describe())

    async def _describe(self) -> Any:
        return self._gateway.describe()

    async def open(self, request: bytes, context: Any) -> Any:
        return await self._answer(context, self._open(request))

    async def _open(self, request: bytes) -> Any:
        return await self._gateway.open(_parse("OpenRequest", request))

    async def act(self, request: bytes, context: Any) -> Any:
        return await self._answer(context, self._act(_secret(context), request))

    async def _act(self, secret: bytes, request: bytes) -> Any:
        return await self._gateway.act(secret, _parse("ActRequest", request))

    async def close(self, _: bytes, context: Any) -> Any:
        return await self._answer(context, self._gateway.close(_secret(context)))

    async def act_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        secret = _secret(context)
        try:
            self._gateway.session(secret)
        except RefusalError as error:
            await _abort(self._gateway, context, error)
        async for data in requests:
            number = 0
            try:
                request = _parse("ActStreamRequest", data)
                number = request.number
                answer = await self._gateway.act(secret, request.request)
                yield ActStreamResponse(number=number, response=answer)
            except RefusalError as error:
                if error.code in ("NOT_FOUND", "UNAVAILABLE"):
                    await _abort(self._gateway, context, error)
                self._gateway.meter.refused(error.code)
                refusal = message("Refusal")(code=error.code, message=error.message)
                yield ActStreamResponse(number=number, refusal=refusal)
            except Exception:  # the edge of this process: the client shall not see a traceback
                logger.exception("a question could not be answered")
                await _abort(self._gateway, context, RefusalError("INTERNAL", INTERNAL))

    async def _answer(self, context: Any, work: Awaitable[T]) -> T:
        try:
            return await work
        except RefusalError as error:
            await _abort(self._gateway, context, error)
        except Exception:  # the edge of this process: the client shall not see a traceback
            logger.exception("a call could not be answered")
            await _abort(self._gateway, context, RefusalError("INTERNAL", INTERNAL))
        raise AssertionError("abort raises")


async def _abort(gateway: Gateway, context: Any, error: RefusalError) -> None:
    gateway.meter.refused(error.code)
    await context.abort(grpc.StatusCode[error.code], error.message)


INTERNAL = "the gateway failed at this call; its log says why"


def _parse(name: str, data: bytes) -> Any:
    try:
        return message(name).FromString(data)
    except DecodeError as error:
        raise RefusalError(
            "INVALID_ARGUMENT", f"the {len(data)} bytes that came are no {name}"
        ) from error


def _to_bytes(answer: Any) -> bytes:
    data: bytes = answer.SerializeToString()
    return data


def _secret(context: Any) -> bytes:
    return _metadata(context.invocation_metadata(), SESSION_KEY)


def _metadata(pairs: Sequence[tuple[str, str | bytes]] | None, name: str) -> bytes:
    for key, value in pairs or ():
        if key == name:
            return value if isinstance(value, bytes) else value.encode()
    return b""


def _refuse_all(why: str) -> Any:
    """A handler that refuses, whatever kind of call it is: it reads nothing, and one that took a
    single message would first have it whole in memory.
    """

    async def refuse(_: Any, context: Any) -> AsyncIterator[None]:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, why)
        yield None

    return grpc.stream_stream_rpc_method_handler(refuse)
