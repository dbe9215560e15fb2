"""The options of `osd serve`: one for every setting, made from the configuration's own fields.

Every setting can be given as `--section.field`. Those that are set most often also have a short option, which `--help`
shows, and many are also known by vLLM's name for them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from osd.config.settings import Config, load_config
from osd.records.errors import OsdError
from serving.cli.flags import vllm
from serving.cli.options import setting

SHORT = {
    "--target": "target.model",
    "--revision": "target.revision",
    "--trust-remote-code": "target.trust_remote_code",
    "--dtype": "target.dtype",
    "--device": "target.device",
    "--threads": "target.threads",
    "--max-context-tokens": "target.max_context_tokens",
    "--chat-template": "target.chat_template",
    "--tool-call-format": "target.tool_call_format",
    "--generation-config": "target.generation_config",
    "--host": "server.host",
    "--port": "server.port",
    "--served-model-name": "server.model_names",
    "--root-path": "server.root_path",
    "--allowed-origins": "server.allowed_origins",
    "--ssl-certfile": "server.ssl_certfile",
    "--ssl-keyfile": "server.ssl_keyfile",
    "--max-slots": "engine.max_slots",
    "--max-waiting": "engine.max_waiting",
    "--prefix-caching": "engine.prefix_caching",
    "--drafter": "drafter.kind",
    "--drafter-model": "drafter.model",
    "--speculate": "speculation.enabled",
    "--speculation-length": "speculation.fixed_length",
    "--train": "trainer.enabled",
    "--loss": "trainer.loss",
    "--optimizer": "trainer.optimizer",
    "--learning-rate": "trainer.learning_rate",
    "--max-utilisation": "trainer.max_utilisation",
    "--redis-url": "outcomes.redis_url",
    "--ray-address": "cluster.address",
    "--log-level": "log.level",
    "--log-format": "log.format",
}
VLLM = {
    "--model": "target.model",
    "--max-model-len": "target.max_context_tokens",
    "--max-num-seqs": "engine.max_slots",
    "--enable-prefix-caching": "engine.prefix_caching",
    "--tool-call-parser": "target.tool_call_format",
    "--trust-request-chat-template": "server.trust_request_chat_template",
}
_HUMAN_READABLE = "--max-model-len"
"""Its value may be written as '8k'."""


@dataclass(frozen=True, slots=True)
class _Option:
    parameter: str
    flag: str
    setting: str
    hidden: bool


def _options() -> Iterator[_Option]:
    dotted = {f"--{name}": name for name in all_settings()}
    for flags, hidden in ((SHORT, False), (VLLM, True), (dotted, True)):
        for flag, name in flags.items():
            yield _Option(flag.strip("-").replace("-", "_").replace(".", "__"), flag, name, hidden)


def all_settings() -> list[str]:
    """Every setting but the state folder, as `section.field`."""
    return [
        f"{section}.{field}"
        for section, info in Config.model_fields.items()
        if section != "state_dir"
        for field in type(info.default).model_fields
    ]


def with_settings(command: Callable[[Config], None]) -> Callable[..., None]:
    """A command that takes an option for every setting, and calls `command` with the configuration they make."""
    options = list(_options())

    def run(**given: Any) -> None:
        command(_configuration(options, given))

    config = Annotated[
        Path | None, typer.Option("--config", help="TOML or YAML file with settings.", show_default=False)
    ]
    state_dir = Annotated[
        Path | None, typer.Option("--state-dir", help=Config.model_fields["state_dir"].description, show_default=False)
    ]
    keys = Annotated[
        list[str] | None,
        typer.Option("--api-key", help="An API key that is accepted; may be given several times.", show_default=False),
    ]
    model = Annotated[str | None, typer.Argument(metavar="MODEL", hidden=True)]
    annotations: dict[str, Any] = {"model_argument": model}
    annotations |= {one.parameter: _annotation(one) for one in options}
    annotations |= {"api_key": keys, "state_dir": state_dir, "config": config}
    annotations |= vllm.needless_options()
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, default=None, annotation=one) for name, one in annotations.items()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads these two
    run.__annotations__ = annotations
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _annotation(option: _Option) -> Any:
    section, field = option.setting.split(".")
    kind = _type_of(Config.model_fields[section].default.__class__.model_fields[field].annotation)
    flag = option.flag
    if flag == _HUMAN_READABLE:
        kind = str
    if kind is bool:
        stem = flag.removeprefix("--")
        flag = f"{flag}/--no-{stem}"
    chosen = setting(section, field, flag)
    chosen.hidden = option.hidden
    return Annotated[Union[kind, None], chosen]  # noqa: UP007  # kind is a value


def _type_of(annotation: Any) -> Any:
    """The type of an option's value: lists by repeating the option, tables as JSON, choices as text (checked later)."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(one for one in get_args(annotation) if one is not type(None))
    if annotation in (bool, int, float):
        return annotation
    return list[str] if get_origin(annotation) is tuple else str


def _configuration(options: list[_Option], given: dict[str, Any]) -> Config:
    chosen: dict[str, tuple[str, Any]] = {}

    def choose(flag: str, name: str, value: Any) -> None:
        before = chosen.setdefault(name, (flag, value))
        if before[1] != value:
            raise OsdError(f"{before[0]} and {flag} are the same setting, {name}, with two values; give one of them")

    vllm.check(given)
    if given["model_argument"] is not None:
        choose("MODEL", "target.model", given["model_argument"])
    for option in options:
        value = given[option.parameter]
        if value is not None and value != []:
            choose(option.flag, option.setting, _parsed(option, value))
    if given["api_key"]:
        hashes = [hashlib.sha256(key.encode()).hexdigest() for key in given["api_key"]]
        choose("--api-key", "server.api_keys_sha256", hashes)
    flags: dict[str, Any] = {}
    for name, (_, value) in chosen.items():
        section, field = name.split(".")
        flags.setdefault(section, {})[field] = value
    if given["state_dir"] is not None:
        flags["state_dir"] = given["state_dir"].expanduser()
    return load_config(given["config"], flags)


def _parsed(option: _Option, value: Any) -> Any:
    """A table is given as JSON, and so is each entry of a list of tables. vLLM's ways to write a value are taken."""
    if option.flag == _HUMAN_READABLE:
        return vllm.num_tokens(value)
    if option.setting == "target.dtype":
        return vllm.dtype(value)
    if option.setting == "server.allowed_origins" and value[0].startswith("["):
        return _json(option, value[0])
    section, field = option.setting.split(".")
    annotation = Config.model_fields[section].default.__class__.model_fields[field].annotation
    is_table = get_origin(annotation) is dict
    item = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    if not is_table and not (isinstance(item, type) and issubclass(item, BaseModel)):
        return value
    return _json(option, value) if is_table else [_json(option, one) for one in value]


def _json(option: _Option, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise OsdError(f"{option.flag} takes a JSON object, such as '{{\"a\": 1}}'") from None
