"""Brings chunks from a spool to a run, in a thread of its own, through as many breaks as there are.

A file is deleted when its chunk is acknowledged. What was sent and not acknowledged is sent again,
to the same gateway or another one; shards know its name and store it once.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections import deque
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from worldloom_client.channel import backoff_s, open_channel
from worldloom_client.errors import ClientError, RefusedError
from worldloom_client.spool import Spool, SpooledChunk, SpoolFolder
from worldloom_client.state import check_retried
from worldloom_client.wire import SESSION_KEY, message, method

__all__ = ["Pusher"]

logger = logging.getLogger(__name__)

AHEAD = 4
"""Chunks that are sent before the first of them is acknowledged."""
LOOK_INTO_SPOOL_EVERY_S = 0.2
IDLE_PUSH_S = 2.0
PUSHER_ENDS_WITHIN_S = 5.0

PushRequest = message("PushRequest")
PushResponse = message("PushResponse")


class Pusher:
    """See the module.

    Args:
        addresses: Of gateways, tried in turn.
        secured_by, metadata: As ``channel.credentials`` gives them.
        spool: Where chunks are.
        own: Its folder of this process.

    Attributes:
        error: Why chunks cannot be pushed, or were refused; None while all is well.
        is_held: The train ratio wants no more rows just now.
    """

    def __init__(
        self,
        addresses: list[str],
        secured_by: Any,
        metadata: tuple[Any, ...],
        spool: Spool,
        own: SpoolFolder,
    ) -> None:
        self.error: ClientError | None = None
        self.is_held = False
        self._addresses = addresses
        self._secured_by = secured_by
        self._metadata = metadata
        self._spool = spool
        self._own = own
        self._is_over = threading.Event()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="pusher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; what is not acknowledged stays in the spool."""
        self._is_over.set()
        self._spool.wake()
        call = self._call
        if call is not None:
            call.cancel()
        self._thread.join(PUSHER_ENDS_WITHIN_S)

    def _run(self) -> None:
        tries = 0
        for address in itertools.cycle(self._addresses):
            if self._is_over.is_set():
                return
            folder = self._spool.next_folder(LOOK_INTO_SPOOL_EVERY_S)
            if folder is None:
                continue
            before = self._spool.waiting_bytes
            try:
                self._push(address, folder)
                tries = 0
            except RefusedError as error:
                self._note(folder, error)
            except (grpc.RpcError, OSError) as error:
                if isinstance(error, OSError):
                    self._note_disk(error)
                tries = tries + 1 if self._spool.waiting_bytes >= before else 0
                self._is_over.wait(backoff_s(tries))

    def _push(self, address: str, folder: SpoolFolder) -> None:
        """Push what is in a folder, and what comes into it meanwhile.

        Raises:
            RefusedError: If the run does not know the folder's secret.
            grpc.RpcError: If the line breaks.
        """
        questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with open_channel(address, self._secured_by) as channel:
            push = channel.stream_stream(
                method("ReplayService", "Push"),
                response_deserializer=PushResponse.FromString,
            )
            metadata = (*self._metadata, (SESSION_KEY, folder.secret))
            self._call = push(iter(questions.get, None), metadata=metadata)
            try:
                self._exchange(folder, questions)
            except grpc.RpcError as error:
                check_retried(error)
                raise
            finally:
                questions.put(None)
                self._call.cancel()
                self._call = None

    def _exchange(self, folder: SpoolFolder, questions: queue.SimpleQueue[bytes | None]) -> None:
        sent: deque[SpooledChunk] = deque()
        while not self._is_over.is_set():
            while len(sent) < AHEAD and (chunk := self._spool.ahead(folder, len(sent))):
                data = chunk.path.read_bytes()
                if _is_whole(data):
                    questions.put(data)
                    sent.append(chunk)
                elif sent:
                    break  # looked at again when it is the oldest
                else:
                    why = f"{chunk.path.name} holds no whole chunk"
                    self._put_aside(folder, "INVALID_ARGUMENT", why)
            if sent:
                answer = next(self._call, None)
                if answer is None:
                    raise _EndedError
                self._take(answer, folder, sent)
            elif folder is not self._own or not self._spool.wait_ahead(
                folder, LOOK_INTO_SPOOL_EVERY_S
            ):
                return

    def _take(self, answer: Any, folder: SpoolFolder, sent: deque[SpooledChunk]) -> None:
        oldest = sent[0]
        self.is_held = answer.HasField("hold")
        if answer.HasField("refusal"):
            sent.popleft()
            self._put_aside(folder, answer.refusal.code, answer.refusal.message)
        elif (answer.env, answer.stored) == (oldest.env, oldest.seq + 1):
            sent.popleft()
            self._spool.stored(folder)

    def _put_aside(self, folder: SpoolFolder, code: str, why: str) -> None:
        """The oldest chunk of a folder will never be stored."""
        where = self._spool.refused(folder)
        self._note(None, RefusedError(code, f"{why} (kept in {where})"))

    def _note_disk(self, error: OSError) -> None:
        """The spool cannot be read: it is tried again, and said once."""
        if self.error is None:
            self.error = ClientError(f"spool: {error}; see that its folder can be read and written")
            logger.warning("%s", self.error)

    def _note(self, folder: SpoolFolder | None, error: RefusedError) -> None:
        if folder is not None:
            error = RefusedError(error.code, f"{error} (the rows stay in {folder.path})")
            self._spool.give_up(folder)
        logger.warning("%s", error)
        self.error = error


def _is_whole(data: bytes) -> bool:
    """False for a file that a power cut has torn: sent, it would end the call of its folder."""
    try:
        PushRequest.FromString(data)
    except DecodeError:
        return False
    return True


class _EndedError(grpc.RpcError):  # type: ignore[misc]
    """The server ended the call."""
