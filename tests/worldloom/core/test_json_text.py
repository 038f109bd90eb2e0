"""JSON objects in files."""

import json

import pytest

from worldloom.core.json_text import read_object, to_json


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


def test_a_list_of_numbers_stays_on_one_line():
    data = {"returns": [1.5, -2e-7, None, 3], "names": ["a", "b"], "empty": [], "more": [[1], [2]]}
    text = to_json(data, indent=2)
    assert '"returns": [1.5, -2e-07, null, 3]' in text
    assert json.loads(text) == data
    odd = {"text": "[\n  1,\n  2\n]", "names": ["[1,", "2]"]}
    assert json.loads(to_json(odd, indent=2)) == odd
