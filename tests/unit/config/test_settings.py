"""Configuration: TOML, then environment, then flags; whatever is unknown is named and refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from osd.config.settings import Config, ConfigError, load_config


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the developer has set must not matter."""
    for name in os.environ:
        if name.startswith("OSD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "osd.toml"
    path.write_text(text)
    return path


def test_defaults(tmp_path: Path) -> None:
    config = load_config()
    assert config.server.host == "127.0.0.1"
    assert config.target.model == "smollm2"
    assert config.state_dir == tmp_path / "state" / "osd"


def test_flags_beat_environment_beats_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _toml(
        tmp_path,
        '[server]\nport = 1001\nhost = "0.0.0.0"\n[engine]\nmax_slots = 2\nmax_waiting = 20\n'
        '[target]\ndevice = "cpu"\n',
    )
    monkeypatch.setenv("OSD_ENGINE__MAX_SLOTS", "3")
    monkeypatch.setenv("OSD_SERVER__PORT", "1002")
    config = load_config(path, {"server": {"port": 1003}})
    assert (config.server.port, config.server.host) == (1003, "0.0.0.0")
    assert (config.engine.max_slots, config.engine.max_waiting) == (3, 20)
    assert config.engine.prefill_chunk_tokens == 256
    assert config.target.device == "cpu"
    assert load_config(path).server.port == 1002


def test_short_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _toml(tmp_path, '[server]\nport = 1001\n[outcomes]\nredis_url = "redis://file/0"\nstream = "s"\n')
    monkeypatch.setenv("OSD_PORT", "1002")
    monkeypatch.setenv("OSD_REDIS_URL", "redis://environment/0")
    config = load_config(path)
    assert (config.server.port, config.outcomes.redis_url, config.outcomes.stream) == (
        1002,
        "redis://environment/0",
        "s",
    )
    config = load_config(path, {"server": {"port": 0}, "outcomes": {"redis_url": "redis://flag/0"}})
    assert (config.server.port, config.outcomes.redis_url) == (0, "redis://flag/0")
    monkeypatch.setenv("OSD_PORT", "")
    assert load_config(path).server.port == 1001


def test_a_section_may_be_given_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSD_TRAINER", '{"optimizer": "RAdam", "optimizer_options": {"weight_decay": 0.1}}')
    trainer = load_config().trainer
    assert (trainer.optimizer, trainer.optimizer_options) == ("RAdam", {"weight_decay": 0.1})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[server]\nprot = 1\n", "unknown setting 'server.prot'"),
        ("[sever]\nport = 1\n", "unknown setting 'sever'"),
        ("port = 1\n", "unknown setting 'port'"),
        ("[server]\nport = 70000\n", "setting 'server.port': .*65535.*70000"),
        ('[target]\ndtype = "int3"\n', "setting 'target.dtype': .*'bfloat16'.*int3"),
        ('[engine]\nmax_slots = "many"\n', "setting 'engine.max_slots'"),
        ("[speculation]\nmax_length = 0\n", "setting 'speculation.max_length'"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = _toml(tmp_path, text)
    with pytest.raises(ConfigError, match=f"osd.toml: .*{key}"):
        load_config(path)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_toml(tmp_path, "[server]\nprot = 1\n[engine]\nmax_slots = 0\n"))
    assert "server.prot" in str(caught.value)
    assert "engine.max_slots" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[server\nport = 1\n", "port = \n", "\x00"])
def test_a_file_that_is_no_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration .*osd.toml: "):
        load_config(_toml(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("name", ["OSD_SEVER__PORT", "OSD_PROT", "OSD_REDIS"])
def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"unknown environment variable {name}"):
        load_config()


def test_an_unknown_field_of_a_known_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSD_SERVER__PROT", "1")
    with pytest.raises(ConfigError, match="unknown setting 'server.prot'"):
        load_config()


@pytest.mark.parametrize(("name", "value"), [("OSD_PORT", "http"), ("OSD_SERVER__PORT", "-1")])
def test_an_unfit_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"setting 'server.port': .*{value}"):
        load_config()


def test_a_variable_that_should_hold_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSD_SERVER", "{port")
    with pytest.raises(ConfigError, match="cannot read the configuration: .*server"):
        load_config()


def test_unknown_flags_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'server.prot'"):
        load_config(flags={"server": {"prot": 1}})


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config()
    for part, name in ((config.server, "port"), (config, "state_dir")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, name, 1)


def test_every_setting_is_explained() -> None:
    for name, section in Config.model_fields.items():
        fields = getattr(section.annotation, "model_fields", {})
        for field_name, field in fields.items():
            assert field.description, f"{name}.{field_name}"
        assert fields or section.description, name


def test_yaml_says_the_same_as_toml(tmp_path: Path) -> None:
    for suffix in ("yaml", "yml"):
        path = tmp_path / f"osd.{suffix}"
        path.write_text("server:\n  port: 8123\n  model_names: [a, b]\ntarget: {dtype: float32}\n")
        config = load_config(path, {"target": {"dtype": "bfloat16"}})
        assert (config.server.port, config.server.model_names, config.target.dtype) == (8123, ("a", "b"), "bfloat16")
    path.write_text("")
    assert load_config(path) == load_config()


@pytest.mark.parametrize(
    ("text", "says"),
    [("a: [", "cannot read"), ("- 1", "cannot read"), ("server: {prt: 1}", "unknown setting 'server.prt'")],
)
def test_yaml_that_cannot_be_had(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "osd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
