"""JSON, TOML and headers that others wrote: whatever is wrong with them is said in one way."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from treewright.envs.errors import EnvFault, TreewrightError
from treewright.envs.lines import DEEPEST, BadLine, json_lines, json_value
from treewright.envs.toml_text import toml_value
from treewright.envs.waiting import LONGEST, seconds_until

NOW = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[" * 5000, f"nested deeper than {DEEPEST} levels"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"nested deeper than {DEEPEST} levels"),
        ("9" * 5000, "Exceeds the limit"),
        (b'{"a": "\xff"}', "not UTF-8 text, see byte 7"),
    ],
)
def test_whatever_is_wrong_with_a_json_text_is_one_kind_of_error(text: str | bytes, why: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=why):
        json_value(text)


def test_json_as_deep_as_people_write_it_is_read() -> None:
    assert json_value(b'\xef\xbb\xbf{"a": [NaN, 1e400]}')["a"][1] == float("inf")
    value = json_value("[" * DEEPEST + "]" * DEEPEST)
    assert isinstance(value, list)
    assert json_value('{"b": {"a": 1}}', lambda found: found.get("a", found)) == {"b": 1}


@pytest.mark.parametrize("text", ['{"a": NaN}', "[-Infinity]", "[0, 1e400]", '{"a": [{"b": -1e999}]}'])
def test_what_is_given_back_as_json_holds_no_number_that_json_does_not_have(text: str) -> None:
    json_value(text)
    with pytest.raises(json.JSONDecodeError, match="is no number in JSON"):
        json_value(text, finite=True)
    assert json_value('[1e300, "NaN", 7]', finite=True) == [1e300, "NaN", 7]


def test_lines_that_are_nested_too_deeply_are_left_out_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[" * 3000 + '\n{"a": 1}\n')
    (_, bad), (number, good) = json_lines(tmp_path / "x.jsonl")
    assert isinstance(bad, BadLine) and "nested deeper" in bad.why and (number, good) == (2, {"a": 1})


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a = "])
def test_toml_that_python_does_not_read_is_one_kind_of_error_too(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        toml_value(text)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, 0), ("120", 120), ("0.5", 0.5), ("-3", 0), ("nan", 0), ("soon", 0), ("1e999", LONGEST),
        ("9" * 400, LONGEST), ("Wed, 21 Oct 2015 07:30:00 GMT", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Tue, 20 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2115 07:28:00 GMT", LONGEST), ("Wed, 99 Oct 2015 07:28:00 GMT", 0),
    ],
)  # fmt: skip
def test_a_server_says_how_long_to_wait_in_seconds_or_as_a_date(said: str | None, seconds: float) -> None:
    assert seconds_until(said, NOW) == seconds


def test_a_date_is_measured_by_the_clock_here_where_the_server_does_not_tell_its_own() -> None:
    assert seconds_until("Wed, 21 Oct 2115 07:28:00 GMT") == LONGEST and seconds_until(NOW) == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "it has no list 'cookies'"),
        ('{"cookies": {}}', "it has no list 'cookies'"),
        ('{"cookies": [{"name": 3}]}', "cookies.0. has no name and value"),
        ('{"cookies": [], "origins": [{}]}', "origins.0. has no address"),
    ],
)
def test_a_file_that_is_no_login_is_told_before_a_browser_takes_it(text: str, why: str, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
    from treewright.envs.web.own_site import web_suite

    (tmp_path / "login.json").write_text(text)
    (tmp_path / "site.toml").write_text('url = "http://127.0.0.1:9/"\nstorage = "login.json"\n')
    with pytest.raises(
        TreewrightError, match=rf"site.toml: field 'storage': .*login.json.*{why}.*storage_state\(path=…\)"
    ):
        web_suite(str(tmp_path / "site.toml"))
    (tmp_path / "login.json").write_text('{"cookies": [{"name": "a", "value": "b"}], "origins": []}')
    web_suite(str(tmp_path / "site.toml"))


@pytest.mark.parametrize("url", ["https://s].example/", "http://a:99999999/", "http://:80/", "ftp://a/"])
def test_an_address_of_a_site_that_cannot_be_is_told_with_its_field(url: str, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
    from treewright.envs.web.own_site import web_suite

    (tmp_path / "site.toml").write_text(f'url = "{url}"\n')
    with pytest.raises(TreewrightError, match=r"site.toml: field 'url' .* is no address; write https://"):
        web_suite(str(tmp_path / "site.toml"))


@pytest.mark.parametrize("nodes", [[{}], [3], [{"nodeId": []}], [{"nodeId": "1", "role": 3}]])
def test_an_accessibility_tree_that_is_none_is_a_fault_of_the_browser(nodes: Any) -> None:
    pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
    from treewright.envs.web.reading import read_tree

    with pytest.raises(EnvFault, match="the browser's accessibility tree cannot be read"):
        read_tree(nodes, "title", "http://site/")
