import logging
import threading

from worldloom_dist.runtime.log_forwarder import LogForwarder, stack_of


def test_warnings_are_kept_until_they_are_fetched() -> None:
    log_forwarder = LogForwarder().listen("relay_test")
    logger = logging.getLogger("relay_test.below")
    logger.setLevel(logging.DEBUG)
    logger.propagate = True
    logger.info("not this")
    logger.warning("env %d hangs", 3)
    logging.getLogger("elsewhere").warning("nor this")
    assert log_forwarder.drain() == [(logging.WARNING, "env 3 hangs")]
    assert log_forwarder.drain() == []
    try:
        raise ValueError("no space left")
    except ValueError:
        logger.exception("a call failed")
    assert log_forwarder.drain() == [
        (logging.ERROR, "a call failed (ValueError: no space left)")
    ], "without the traceback"


def test_what_some_loggers_have_to_say_is_kept_too() -> None:
    log_forwarder = LogForwarder("relay_news.files").listen("relay_news")
    logging.getLogger("relay_news").setLevel(logging.DEBUG)
    logging.getLogger("relay_news.files.one").info("a file was stored")
    logging.getLogger("relay_news.files").debug("not this")
    logging.getLogger("relay_news.other").info("nor this")
    logging.getLogger("relay_news.other").error("but this")
    assert log_forwarder.drain() == [
        (logging.INFO, "a file was stored"),
        (logging.ERROR, "but this"),
    ]


def test_a_line_that_cannot_be_formatted_ends_nothing(monkeypatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log_forwarder = LogForwarder()
    log_forwarder.emit(
        logging.LogRecord("any", logging.WARNING, "", 0, "this %d", ("is no number",), None)
    )
    assert log_forwarder.drain() == []


def test_stack_names_where_a_thread_is() -> None:
    release = threading.Event()
    started = threading.Event()

    def waits_on_purpose() -> None:
        started.set()
        release.wait(10)

    thread = threading.Thread(target=waits_on_purpose)
    thread.start()
    started.wait(10)
    stack = stack_of(thread.ident or 0)
    release.set()
    thread.join()
    assert "waits_on_purpose" in stack
    assert stack_of(10**9) == ""
