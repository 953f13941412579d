"""One configuration: TOML, settings on top, unknown keys refused with the nearest known name."""

from __future__ import annotations

from pathlib import Path

import pytest

from treewright.agent.config import Config, ConfigError, load_config, to_toml


def test_settings_win_over_the_file_which_wins_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('name = "mine"\n[search]\nexpansions = 9\ndraws = 3\n')
    config = load_config(path, ["search.expansions=11", 'worlds.suites=["kg"]', "policy.spec=hf:x=y"])
    assert (config.name, config.search.expansions, config.search.draws) == ("mine", 11, 3)
    assert config.worlds.suites == ("kg",) and config.policy.spec == "hf:x=y"


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("search.expansion=3", "search.expansions"),
        ("serach.draws=3", "search"),
        ("lr=0.1", "train.lr"),
        ("trian.lr=0.1", "train"),
    ],
)
def test_an_unknown_key_fails_with_the_nearest_known_name(setting: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        load_config(None, [setting])


def test_a_wrong_value_names_the_key_and_what_was_given() -> None:
    with pytest.raises(ConfigError, match=r"search\.draws = 0"):
        load_config(None, ["search.draws=0"])
    with pytest.raises(ConfigError, match=r"train\.lr"):
        load_config(None, ["train.lr=fast"])


def test_a_setting_without_a_value_or_on_a_section_says_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"--set search\.expansions=8"):
        load_config(None, ["search.expansions"])
    with pytest.raises(ConfigError, match="section"):
        load_config(None, ["search=3"])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_config(tmp_path / "bad.toml")


def test_the_printed_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text(to_toml(Config()))
    assert load_config(path) == Config()


def test_options_of_a_policy_survive_the_way_through_a_file(tmp_path: Path) -> None:
    given = load_config(None, ['policy.options={"grammar": true, "engine": {"max_model_len": 99}}'])
    path = tmp_path / "all.toml"
    path.write_text(to_toml(given))
    assert (
        load_config(path).policy.options == given.policy.options == {"grammar": True, "engine": {"max_model_len": 99}}
    )
