"""The public API is what ``public_api.txt`` says, line by line: no name, argument, default, field,
flag, metric or message changes without being seen.
"""

import difflib
import re
from pathlib import Path

from tests.compat.public_api import describe

FROZEN = Path(__file__).with_name("public_api.txt")
HOW = """
Lines with - are promised and gone: old code breaks. Restore them, or, where the break is meant,
raise the major version (before 1.0 the minor one) and say under "Changed" or "Removed" in
CHANGELOG.md what to write instead. Lines with + are new: say so under "Added". Then accept:

    python -m tests.compat.public_api > tests/compat/public_api.txt
"""


def changes(old: str, new: str) -> list[str]:
    """Lines that are gone, with a minus, and lines that are new, with a plus."""
    found = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return [line for line in found if re.match(r"[+-](?![+-]{2} )", line)]


def test_the_public_api_is_the_one_that_is_promised() -> None:
    found = changes(FROZEN.read_text(), describe())
    assert not found, "the public API has changed:\n\n" + "\n".join(found) + "\n" + HOW


def test_what_is_promised_is_most_of_what_people_use() -> None:
    text = FROZEN.read_text()
    for line in (
        "worldloom.load_agent(",
        "worldloom.testing.check_agent(",
        "worldloom_client.connect(",
        "worldloom_client.Settings.",
        "worldloom_dist.submit.submit(",
        "worldloom.LatentType.",
        "command worldloom train",
        "flag --replay.capacity-steps = 1000000",
        "metric loss: gauge",
        "message ActRequest.",
        "rpc PolicyService.Act(ActRequest)",
    ):
        assert f"\n{line}" in "\n" + text, line
    assert " at 0x" not in text


def test_a_change_of_any_kind_is_seen() -> None:
    old = "a.f(x, *, y=1)\na.C.size: field = 3\n"
    assert changes(old, old.replace("y=1", "y=2")) == ["-a.f(x, *, y=1)", "+a.f(x, *, y=2)"]
    assert changes(old, "a.f(x, *, y=1)\n") == ["-a.C.size: field = 3"]
    assert changes(old, old) == []
