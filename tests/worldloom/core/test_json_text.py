"""JSON objects in files."""

import pytest

from worldloom.core.json_text import read_object


def test_a_file_that_holds_something_else_is_no_object(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"run": 1}')
    assert read_object(path) == {"run": 1}
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds a list, not a JSON object"):
        read_object(path)
    path.write_text('{"run": ')
    with pytest.raises(ValueError):
        read_object(path)
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json")
