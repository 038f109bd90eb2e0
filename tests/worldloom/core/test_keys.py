"""A key is made once, however many processes want it at the same time."""

import threading
from pathlib import Path

import pytest

from worldloom.core.keys import KEY_BYTES, load_key


def test_all_who_make_a_key_at_once_get_the_same(tmp_path: Path, monkeypatch) -> None:
    """Both saw no file; the one that was first counts."""
    path = tmp_path / "owner.key"
    meet = threading.Barrier(2)
    found = []
    is_file = Path.is_file

    def looked(own: Path) -> bool:
        there = is_file(own)
        if own == path:
            meet.wait(10)
        return there

    monkeypatch.setattr(Path, "is_file", looked)
    names = iter(["11", "22"])
    monkeypatch.setattr("worldloom.core.keys.os.getpid", lambda: next(names))
    threads = [threading.Thread(target=lambda: found.append(load_key(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(found[0]) == KEY_BYTES
    assert [one.name for one in tmp_path.iterdir()] == ["owner.key"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("content", [b"", b"k" * KEY_BYTES])
def test_a_key_that_is_cut_short_or_was_readable_by_others_is_replaced(
    mode, content, tmp_path, caplog
):
    path = tmp_path / "gateway.key"
    path.write_bytes(content)
    path.chmod(mode)
    key = load_key(path)
    is_good = content and mode == 0o600
    assert (key == content) == bool(is_good)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path) == key
    assert bool(caplog.text) != bool(is_good)
