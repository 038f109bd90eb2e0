"""The service ``grpc.health.v1.Health``, as its published proto has it. Its two messages are
described here, so that no package comes along that is bound to one version of protobuf.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["Health"]

SERVICE = "grpc.health.v1.Health"
SERVING = 1
NOT_SERVING = 2
SERVICE_UNKNOWN = 3
MOST_CALLS = 16
"""At a time. They need no token, and each may hold a message as large as any."""
STATUSES = {"UNKNOWN": 0, "SERVING": SERVING, "NOT_SERVING": NOT_SERVING, "SERVICE_UNKNOWN": 3}


def _messages() -> tuple[Any, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    response = file.message_type.add(name="HealthCheckResponse")
    status = response.enum_type.add(name="ServingStatus")
    for name, number in STATUSES.items():
        status.value.add(name=name, number=number)
    response.field.add(
        name="status",
        number=1,
        type=field.TYPE_ENUM,
        label=field.LABEL_OPTIONAL,
        type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.health.v1.{name}"))
        for name in ("HealthCheckRequest", "HealthCheckResponse")
    ]
    return found[0], found[1]


Request, Response = _messages()


class Health:
    """Whether the services are ready.

    Args:
        services: Their names; the empty one, which stands for the whole server, is added.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._is_serving = False
        self._changed = asyncio.Event()
        self._calls: dict[asyncio.Task[Any], None] = {}  # the oldest first

    def set(self, *, is_serving: bool) -> None:
        """Tell everyone."""
        self._is_serving = is_serving
        self._changed.set()
        self._changed = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods of the service."""
        handlers = {"Check": self._bounded(self._check), "Watch": self._bounded(self._watch)}
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _check(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if request.service not in self._services:
                name = request.service[:80]
                await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {name!r} here")
            yield Response(status=self._status(request.service))
            return

    async def _watch(self, requests: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            while True:
                changed = self._changed
                yield Response(status=self._status(request.service))
                await changed.wait()

    def _bounded(self, answers: Callable[..., AsyncIterator[Any]]) -> Any:
        """A handler of calls, of which one too many ends the oldest. It is one of streams, so that
        a call is counted before its message is read.
        """

        async def answer(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            task = asyncio.current_task()
            assert task is not None
            self._calls[task] = None
            if len(self._calls) > MOST_CALLS:
                oldest = next(iter(self._calls))
                del self._calls[oldest]
                oldest.cancel()
            try:
                async for response in answers(requests, context):
                    yield response
            except asyncio.CancelledError:
                if task in self._calls:  # its client left
                    raise
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {MOST_CALLS} newer calls"
                )
            finally:
                self._calls.pop(task, None)

        return grpc.stream_stream_rpc_method_handler(
            answer,
            request_deserializer=Request.FromString,
            response_serializer=Response.SerializeToString,
        )

    def _status(self, service: str) -> int:
        if service not in self._services:
            return SERVICE_UNKNOWN
        return SERVING if self._is_serving else NOT_SERVING
