"""Secrets stay out of what is kept and shown: by every spelling here, by every sink in `make security`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from echoes import SPELLINGS, found_in, made

from treewright.agent.config import load_config, store_settings
from treewright.envs import secrecy
from treewright.envs.redact import Redactor, without_secrets
from treewright.envs.secrecy import in_login, in_settings, in_url, keep_secret
from treewright.envs.tools.mcp_suite import mcp_suite
from treewright.envs.web.own_site import web_suite

from .canaries import sweep


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test teaches this process is gone with the test."""
    monkeypatch.setattr(secrecy, "_learned", {})


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found_by_the_sweep_and_left_out_by_the_redactor(spelling: str) -> None:
    for name, value in made().items():
        redact, text = Redactor([value]), SPELLINGS[spelling](value)
        for ascii in (True, False):
            for _ in range(3):
                assert found_in(text.encode(), {name: value}) == {name}, text
                assert not found_in(redact.text(text).encode(), {name: value}), (name, redact.text(text))
                text = json.dumps({"said": text}, ensure_ascii=ascii)
            text = SPELLINGS[spelling](value)


def test_what_is_learned_after_a_redactor_was_made_is_left_out_too() -> None:
    redact = Redactor(environ={})
    assert redact.text("a hunter2-hunter2 b") == "a hunter2-hunter2 b"
    keep_secret("Bearer hunter2-hunter2", "short", None)
    assert redact.text("a hunter2-hunter2 b short") == "a [redacted] b short"
    assert redact.bytes(b"a hunter2-hunter2") == b"a [redacted]"
    assert Redactor([]).text("hunter2-hunter2") == "hunter2-hunter2", "a list of one's own is the whole list"


def test_secrets_of_addresses_settings_and_logins() -> None:
    assert in_url("see http://me:pass-word-1@host/x?api_key=query-key-1&page=12345678 and http://host") == [
        "pass-word-1", "pass-word-1", "query-key-1",
    ]  # fmt: skip
    told = {"policy": {"options": {"api_key": "setting-key-1", "api_key_env": "OPENAI_API_KEY", "max_tokens": 10**9}}}
    assert in_settings(told) == ["setting-key-1"]
    cookies = [
        {"name": "sid", "value": "c" * 8, "httpOnly": True},
        {"name": "lang", "value": "de-de-de", "httpOnly": False},
    ]
    assert in_login({"cookies": cookies, "origins": [{"localStorage": [{"name": "t", "value": "s" * 16}]}]}) == [
        "c" * 8, "s" * 16,
    ]  # fmt: skip
    assert in_login("no login") == in_login({"cookies": 3}) == []
    proxied = Redactor(environ={"HTTPS_PROXY": "http://me:proxy-pass-1@proxy:8080"})
    assert proxied.text("proxy-pass-1") == "[redacted]"


def test_servers_and_sites_of_ones_own_teach_their_secrets(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(
        f'command = "{sys.executable} -V"\n[env]\nAPI_TOKEN = "mcp-token-1"\nMODE = "anything-goes"\n'
    )
    mcp_suite(str(tmp_path / "shop.toml"))
    (tmp_path / "login.json").write_text(
        '{"cookies": [{"name": "sid", "value": "cookie-value-1", "httpOnly": true}], "origins": []}'
    )
    (tmp_path / "site.toml").write_text(
        'url = "http://localhost/"\nstorage = "login.json"\n'
        '[headers]\nX-Session = "header-value-1"\nAccept-Language = "de-de-de"\n'
    )
    web_suite(str(tmp_path / "site.toml"))
    masked = without_secrets("mcp-token-1 anything-goes cookie-value-1 header-value-1 de-de-de")
    assert masked == "[redacted] anything-goes [redacted] [redacted] de-de-de"


def test_run_toml_holds_no_secret_and_what_needs_one_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = f"folder={tmp_path / 'run'}"
    words = [
        folder,
        "store=postgresql://me:store-pass-1@host/db",
        "seed=3",
        'worlds.web={"token": "web-token-1", "quiet": 1}',
    ]
    store_settings(load_config(None, words), {"line": f"treewright collect --set {words[1]}"})
    kept = (tmp_path / "run" / "run.toml").read_text()
    assert "store-pass-1" not in kept and "web-token-1" not in kept and "postgresql://me@host/db" in kept
    with caplog.at_level(logging.WARNING):
        again = load_config(None, [folder], remember=True)
    assert again.store == "postgresql://me@host/db" and again.seed == 3 and again.worlds.web == {"quiet": 1}
    assert "keeps no secrets" in caplog.text and "worlds.web.token" in caplog.text


def test_a_world_that_says_everything_leaves_no_canary_behind() -> None:
    look = sweep(["models"])
    assert not look.hits, look.where
    assert {"store", "processes", "run.toml"} <= set(look.sinks)
