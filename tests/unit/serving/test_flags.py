"""The options of `osd serve`: one for every setting, and vLLM's names."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import psutil
import pytest
from pydantic import ValidationError

from osd.config.monitor import AlertRule, Webhook
from osd.config.settings import Config
from serving.cli.flags.settings import SHORT, VLLM, all_settings
from serving.cli.flags.vllm import INSTEAD, ONLY, SWITCHES
from serving.serve import Serving
from tests.kit.cli_kit import the_error
from tests.kit.saved_models import save_llama

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def served(osd: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`osd serve …`, up to the configuration that it would serve with."""
    configs: list[Config] = []
    monkeypatch.setattr("serving.serve.run_server", lambda config, **_: configs.append(config))

    def deploy(config: Config, _: object) -> Serving:
        configs.append(config)
        return Serving("http://x", "x", "x", "x", None)

    monkeypatch.setattr("serving.deploy.deploy_to_cluster", deploy)

    def serve(*arguments: object) -> Config:
        status, _, err = osd("serve", *arguments)
        assert status == 0, err
        return configs.pop()

    return serve


def value_of(config: Config, setting: str) -> Any:
    section, field = setting.split(".")
    return getattr(getattr(config, section), field)


def other_value(setting: str) -> tuple[list[str], Any]:
    """Some value that is not the default, as arguments and as it is read."""
    section, field = setting.split(".")
    kind = type(Config.model_fields[section].default)
    info = kind.model_fields[field]
    default, annotation = info.get_default(call_default_factory=True), info.annotation
    special: dict[str, Any] = {
        "server.root_path": "/x",
        "server.allowed_origins": ("https://a.example",),
        "speculation.fixed_length": 3,
        "target.max_context_tokens": 99,
        "swap.canary_share": 0.5,
        "cluster.min_engines": 2,
        "cluster.distiller_num_cpus": 0.5,
        "cluster.distiller_num_gpus": 0.5,
    }
    tables: dict[str, Any] = {
        "monitor.alerts": AlertRule(name="x", when="drift"),
        "monitor.webhooks": Webhook(url="http://a.example"),
    }
    if setting in tables:
        return [f"--{setting}", tables[setting].model_dump_json()], (tables[setting],)
    if setting in special:
        value = special[setting]
    elif get_origin(annotation) is Literal:
        value = get_args(annotation)[-1]
    elif get_origin(annotation) is dict:
        table = {"a": "x" if setting == "server.api_key_domains" else 1}
        return [f"--{setting}", json.dumps(table)], table
    elif get_origin(annotation) is tuple:
        value = ("x",)
    elif isinstance(default, bool):
        return [f"--{'no-' if default else ''}{setting}"], not default
    elif isinstance(default, int | float):
        value = next(one for one in (default - 1, default + 1, default / 2) if fits(kind, field, one))
    else:
        value = "x"
    values = value if isinstance(value, tuple) else (value,)
    return [argument for one in values for argument in (f"--{setting}", str(one))], value


def fits(kind: Any, field: str, value: float) -> bool:
    try:
        kind.model_validate({field: value})
    except ValidationError:
        return False
    return True


_WITH = {
    "server.ssl_keyfile": ["--ssl-certfile", "x"],
    "server.api_key_domains": ["--server.api_keys_sha256", "a"],
    "cluster.min_engines": ["--cluster.max_engines", "2"],
}
"""What some settings need beside them."""


def test_every_setting_has_an_option(served: Any) -> None:
    assert len(all_settings()) > 70
    for setting in all_settings():
        arguments, value = other_value(setting)
        arguments += _WITH.get(setting, [])
        assert value_of(served(*arguments), setting) == value != value_of(Config(), setting), setting


def test_short_options_and_vllms_names_are_of_settings() -> None:
    assert set(SHORT.values()) | set(VLLM.values()) <= set(all_settings())
    assert not SHORT.keys() & VLLM.keys()


def test_vllms_names(served: Any) -> None:
    config = served(
        *("--model", "m", "--max-model-len", 99, "--max-num-seqs", 3, "--no-enable-prefix-caching"),
        *("--tool-call-parser", "hermes", "--served-model-name", "a", "--served-model-name", "b"),
        *("--api-key", "one", "--api-key", "two"),
        *("--revision", "v1", "--trust-remote-code"),
    )
    assert (config.target.revision, config.target.trust_remote_code) == ("v1", True)
    assert (config.target.model, config.target.max_context_tokens, config.engine.max_slots) == ("m", 99, 3)
    assert not config.engine.prefix_caching and config.target.tool_call_format == "hermes"
    assert config.server.model_names == ("a", "b")
    assert config.server.api_keys_sha256 == tuple(sha256(key.encode()).hexdigest() for key in ("one", "two"))


def test_a_command_line_of_vllm(served: Any) -> None:
    """With options that ask for what osd does anyway, and values in vLLM's ways of writing them."""
    config = served(
        *("m", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--dtype", "half", "-tp", 1),
        *("--max-model-len", "8k", "--pipeline-parallel-size=1", "--disable-log-requests", "--max-logprobs", "20"),
        *("--allowed-origins", '["https://a.example", "https://b.example"]', "--host", "0.0.0.0", "--port", "9"),
    )
    assert (config.target.model, config.target.dtype, config.target.max_context_tokens) == ("m", "float16", 8000)
    assert config.server.allowed_origins == ("https://a.example", "https://b.example")
    assert served("--max-model-len", "2K").target.max_context_tokens == 2048
    assert served("--max-model-len", "auto").target.max_context_tokens is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-tp", "2"), "--tensor-parallel-size 2: a target is computed on one device"),
        (("--gpu-memory-utilization", "0.9"), "--gpu-memory-utilization: the KV cache has --max-slots rows"),
        (("--gpu-memory-utilization=0.9",), "--max-slots"),
        (("--reasoning-parser", "qwen3"), "finds in the chat template how reasoning is marked"),
        (("m", "--served-model-name", "a", "b"), "repeat --served-model-name for each name"),
        (("--max-model-len", "many"), "--max-model-len takes a number of tokens, such as 8192 or 8k"),
        (("--max-model-length", "9"), "--max-model-len"),
        (("--max-num-seq", "9"), "--max-num-seqs"),
        (("--served-model", "a"), "--served-model-name"),
        (("--server.prt", "1"), "--server.port"),
    ],
)
def test_an_option_that_osd_lacks_names_the_one_that_it_has(osd: Any, arguments: tuple[str, ...], says: str) -> None:
    assert says in the_error(osd("serve", *arguments))


def test_what_is_said_of_vllms_options_names_options_of_osd(served: Any) -> None:
    assert not (INSTEAD.keys() | ONLY.keys() | set(SWITCHES)) & (SHORT.keys() | VLLM.keys())
    for text in [*INSTEAD.values(), *(text for _, text in ONLY.values())]:
        for flag in re.findall(r"--[a-z][a-z_.-]*[a-z]", text):
            assert flag in SHORT or flag.removeprefix("--") in all_settings(), flag


def test_the_model_by_its_place(served: Any) -> None:
    assert served("owner/name").target.model == "owner/name"
    assert served("m", "--model", "m").target.model == "m"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--port", "1", "--server.port", "2"), "server.port"),
        (("m", "--target", "n"), "target.model"),
        (("--trainer.optimizer_options", "{"), "--trainer.optimizer_options"),
        (("--trainer.nice", "20"), "trainer.nice"),
        (("--server.prt", "1"), "--server.prt"),
        (("--load-format", "auto"), "--load-format"),
    ],
)
def test_what_does_not_fit_is_one_line(osd: Any, arguments: tuple[str, ...], named: str) -> None:
    assert named in the_error(osd("serve", *arguments))


def test_the_file_is_below_the_options(served: Any, tmp_path: Path) -> None:
    file = tmp_path / "osd.toml"
    file.write_text('[server]\nport = 1\nhost = "::1"\n')
    config = served("--config", file, "--server.port", 2, "--state-dir", tmp_path / "state")
    assert (config.server.port, config.server.host, config.state_dir) == (2, "::1", tmp_path / "state")


def test_the_version(osd: Any) -> None:
    status, out, err = osd("--version")
    assert (status, err) == (0, "") and out.startswith("osd ") and out.count("\n") == 1


def findings(out: str) -> dict[str, str]:
    """Subject to state."""
    lines = [line.partition(":")[0].split(None, 1) for line in out.splitlines()]
    return {subject: state for state, subject in lines}


class TestDoctor:
    def test_a_sound_machine(self, osd: Any, tmp_path: Path) -> None:
        file = tmp_path / "osd.toml"
        file.write_text("[server]\nport = 0\n")
        status, out, _ = osd("doctor", "--config", file, "--state-dir", tmp_path)
        found = findings(out)
        assert {"software", "CPU", "device", "memory", "state folder", "target", "address", "Redis", "Ray"} <= set(
            found
        )
        assert found["address"] == found["device"] == "ok"
        assert f"{psutil.cpu_count()} hardware threads; the engine takes" in out and "GiB are free" in out
        assert status == int("wrong" in found.values())

    def test_what_is_wrong_is_told_with_its_fix(self, osd: Any, tmp_path: Path) -> None:
        file = tmp_path / "osd.toml"
        settings = {
            "server": {"host": "192.0.2.1", "ssl_certfile": "/nowhere.pem"},
            "target": {"model": "/nowhere", "device": "cuda:99"},
            "outcomes": {"redis_url": "redis://127.0.0.1:9"},
            "cluster": {"address": "127.0.0.1:9"},
        }
        lines = [
            f"[{section}]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
            for section, values in settings.items()
        ]
        file.write_text("\n".join(lines))
        status, out, _ = osd("doctor", "--config", file, "--state-dir", tmp_path)
        found = findings(out)
        assert status == 1
        wrong = {subject for subject, state in found.items() if state == "wrong"}
        assert wrong == {"address", "TLS", "target", "device", "Redis", "Ray"}
        assert "--ssl-certfile" in out and "/nowhere does not exist" in out

    def test_a_target_that_cannot_be_served(self, osd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = save_llama(tmp_path / "model")
        command = ("doctor", "--state-dir", tmp_path, "--config", tmp_path / "osd.toml")
        (tmp_path / "osd.toml").write_text(f"server.port = 0\ntarget.model = {json.dumps(str(folder))}\n")
        assert findings(osd(*command)[1])["target"] == "ok"
        monkeypatch.setattr("osd.loading.fit.memory_bytes", lambda _: 1000)
        _, out, _ = osd(*command)
        assert findings(out)["target"] == "wrong" and "choose --dtype int4, a smaller target" in out
        config = json.loads((folder / "config.json").read_text())
        own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
        (folder / "config.json").write_text(json.dumps(config | own))
        _, out, _ = osd(*command)
        assert findings(out)["target"] == "wrong" and "give --trust-remote-code" in out
