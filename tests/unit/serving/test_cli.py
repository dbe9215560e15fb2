"""The `osd` command, but for serving: what it prints, what it refuses, and in how many words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from osd.drafters import shipped
from osd.drafters.portable import write_drafter
from osd.io.domains.listed import DomainList
from osd.io.domains.store import DomainStore
from osd.io.folder import LocalFolder
from osd.records.errors import OsdError
from osd.records.version import WeightManifest
from serving.cli import app as cli
from tests.kit.cli_kit import the_error
from tests.kit.saved_models import save_llama

NOBODY = "http://127.0.0.1:9"


pytestmark = pytest.mark.usefixtures("plain_environment")


def run_program(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli.app", *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def show(osd: Any, *arguments: object) -> dict[str, Any]:
    status, out, err = osd("config", "show", *arguments)
    assert (status, err) == (0, "")
    return tomllib.loads(out)


def test_every_serve_option_has_one_line(osd: Any) -> None:
    status, out, _ = osd("serve", "--help")
    assert status == 0
    rows = [line.strip("│ ") for line in out.splitlines() if line.startswith("│")]
    assert len(rows) > 25
    for row in rows:
        option = re.fullmatch(r"(--[a-z-]+)(?:\s+--no-[a-z-]+)?\s+(?:<?[\w\[\]]+>?)\s+(\S.*\.)( \(default: .+\))?", row)
        assert option, row
    assert "(default: smollm2)" in out and "(default: 8000)" in out


def test_without_a_command_it_helps(osd: Any) -> None:
    status, out, _ = osd()
    assert status == 0 and "serve" in out and "drafter" in out


def test_what_config_show_prints_is_a_config_file(osd: Any, tmp_path: Path) -> None:
    file = tmp_path / "osd.toml"
    _, printed, _ = osd("config", "show")
    file.write_text(printed)
    assert show(osd, "--config", file) == tomllib.loads(printed)
    assert tomllib.loads(printed)["server"]["port"] == 8000


def test_odd_values_survive_config_show(osd: Any, tmp_path: Path) -> None:
    file, again = tmp_path / "osd.toml", tmp_path / "again.toml"
    file.write_text(
        f'state_dir = "{tmp_path}/with \\"quotes\\" \\\\ and é"\n'
        '[trainer]\noptimizer = "SGD"\noptimizer_options = { momentum = 0.9, nesterov = true }\nlearning_rate = 1e-10\n'
        '[server]\napi_keys_sha256 = ["aa", "bb"]\n[speculation]\nfixed_length = 0\n'
        '[target]\nmodel = "a\\u007fb\\u0001"\n'
    )
    _, printed, _ = osd("config", "show", "--config", file)
    again.write_text(printed)
    shown = show(osd, "--config", again)
    assert shown == tomllib.loads(printed)
    assert shown["trainer"]["optimizer_options"] == {"momentum": 0.9, "nesterov": True}
    assert shown["trainer"]["learning_rate"] == 1e-10
    assert shown["server"]["api_keys_sha256"] == ["aa", "bb"]
    assert shown["speculation"]["fixed_length"] == 0
    assert shown["target"]["model"] == "a\x7fb\x01"
    assert shown["state_dir"] == f'{tmp_path}/with "quotes" \\ and é'


def test_flags_over_environment_over_file(osd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "osd.toml"
    file.write_text(f'state_dir = "{tmp_path}/file"\n[server]\nport = 1\nhost = "::1"\n')
    shown = show(osd, "--config", file)
    assert (shown["state_dir"], shown["server"]["port"]) == (f"{tmp_path}/file", 1)
    monkeypatch.setenv("OSD_STATE_DIR", f"{tmp_path}/env")
    monkeypatch.setenv("OSD_SERVER__PORT", "2")
    shown = show(osd, "--config", file)
    assert (shown["state_dir"], shown["server"]["port"]) == (f"{tmp_path}/env", 2)
    assert shown["server"]["host"] == "::1"
    assert show(osd, "--config", file, "--state-dir", tmp_path / "flag")["state_dir"] == f"{tmp_path}/flag"


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("[server]\nprt = 1\n", "server.prt"),
        ("colour = 1\n", "colour"),
        ("[server]\nport = 70000\n", "server.port"),
        ('[target]\ndtype = "int3"\n', "target.dtype"),
        ("[server\n", "osd.toml"),
    ],
)
def test_a_wrong_file_is_refused(osd: Any, tmp_path: Path, toml: str, named: str) -> None:
    file = tmp_path / "osd.toml"
    file.write_text(toml)
    assert named in the_error(osd("config", "show", "--config", file))


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("OSD_SEVER__PORT", "1", "OSD_SEVER__PORT"),
        ("OSD_SERVER__PRT", "1", "server.prt"),
        ("OSD_SERVER__PORT", "many", "server.port"),
        ("OSD_PORT", "many", "server.port"),
    ],
)
def test_a_wrong_variable_is_refused(
    osd: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    monkeypatch.setenv(name, value)
    assert named in the_error(osd("config", "show"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("serve", "--dtype", "int3"), "target.dtype"),
        (("serve", "--port", "many"), "--port"),
        (("serve", "--port", "70000"), "server.port"),
        (("serve", "--prot", "1"), "--prot"),
        (("serve", "--target", "/nowhere/[at]/all"), "/nowhere/[at]/all"),
        (("drafter",), "Missing command"),
        (("drafter", "show"), "argument"),
        (("sevre",), "sevre"),
        (("config", "show", "--config", "/nowhere/[a]:smile:.toml"), "/nowhere/[a]:smile:.toml"),
        (("status", "--url", NOBODY), NOBODY),
        (("status", "--url", "nonsense"), "nonsense"),
        (("status", "--url", "http://[bad"), "http://[bad"),
        (("chat", "--url", NOBODY, "hi"), NOBODY),
        (("chat", "--url", "http://[bad", "hi"), "http://[bad"),
    ],
)
def test_errors_are_one_line_that_names_the_cause(osd: Any, arguments: tuple[str, ...], named: str) -> None:
    assert named in the_error(osd(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [("serve", "--port", "many"), ("status", "--url", NOBODY), ("config", "show", "--config", "/nowhere/" + "x" * 90)],
)
def test_the_program_in_a_narrow_terminal(arguments: tuple[str, ...]) -> None:
    assert len(the_error(run_program(*arguments, env={"COLUMNS": "30"}))) > 40


def test_an_error_of_many_lines_is_one(osd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OsdError("first\nsecond [bold]third[/bold] [/]")

    monkeypatch.setattr(cli, "app", broken)
    assert the_error(osd("status")) == "first second [bold]third[/bold] [/]"


def test_errors_of_the_file_system_name_the_path(osd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        Path("/nowhere/at/all").read_text()

    monkeypatch.setattr(cli, "app", broken)
    assert "/nowhere/at/all" in the_error(osd("status"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


class TestDrafter:
    @pytest.fixture(params=["feature", "model", "eagle3"])
    def drafter(self, osd: Any, target: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
        """`osd drafter …` for one kind, with its first version made."""
        options = ("--target", target, "--drafter", request.param, "--state-dir", tmp_path / "state")

        def run(command: str, *arguments: object) -> tuple[int, str, str]:
            return osd("drafter", command, *arguments, *options)  # type: ignore[no-any-return]

        status, out, err = run("init")
        assert status == 0 and "version 1" in out and request.param in out, err
        yield run

    @staticmethod
    def store_files(tmp_path: Path) -> dict[str, bytes]:
        files = (path for path in (tmp_path / "state" / "weights").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if path.name != "lock"}

    @staticmethod
    def first_weights(tmp_path: Path) -> dict[str, torch.Tensor]:
        (path,) = (tmp_path / "state" / "weights").rglob("v000001.safetensors")
        return load_file(path)

    @staticmethod
    def first_manifest(tmp_path: Path) -> WeightManifest:
        (path,) = (tmp_path / "state" / "weights").rglob("v000001.json")
        return WeightManifest(**json.loads(path.read_text()))

    def test_a_version_from_its_making_to_its_end(self, drafter: Any, tmp_path: Path) -> None:
        assert "version 1" in the_error(drafter("init"))
        assert "untrained" in drafter("list")[1]
        status, out, _ = drafter("show", 1)
        assert status == 0 and '"number": 1' in out and "whole" in out

        state = self.first_weights(tmp_path)
        file = tmp_path / "mine.safetensors"
        save_file({name: tensor * 0.5 for name, tensor in state.items()}, file)
        status, out, err = drafter("publish", file, "--note", "halved [for fun]")
        assert status == 0 and "version 2" in out, err
        listed = drafter("list")[1]
        assert "*2" in listed and "halved [for fun]" in listed

        status, out, err = drafter("rollback", "--reason", "[worse]")
        assert status == 0 and "version 1" in out, err
        listed = drafter("list")[1]
        assert "*1" in listed and "rolled back: [worse]" in listed
        before = self.store_files(tmp_path)
        assert "1" in the_error(drafter("rollback"))
        assert "rolled back" in the_error(drafter("rollback", "--to", 2))
        assert self.store_files(tmp_path) == before

    def test_versions_of_a_domains_own_drafter(self, drafter: Any, tmp_path: Path) -> None:
        assert "drafter of its own" not in drafter("list")[1]
        base, manifest = self.first_weights(tmp_path), self.first_manifest(tmp_path)
        [folder] = (tmp_path / "state" / "weights").glob("*/*")
        DomainList(LocalFolder(folder)).add("sql")
        store = DomainStore(folder.with_name(f"{folder.name}.sql"))
        store.publish(base, kind=manifest.kind, config=manifest.config, parent=None, note="beat it")
        assert "with a drafter of its own (see --domain): sql" in drafter("list")[1]
        listed = drafter("list", "--domain", "sql")[1]
        assert "*1" in listed and "beat it" in listed
        assert drafter("show", 1, "--domain", "sql")[0] == 0
        status, out, err = drafter("rollback", "--domain", "sql", "--to", 0)
        assert status == 0 and "the base drafter serves again" in out, err
        assert "*1" not in drafter("list", "--domain", "sql")[1] and "*1" in drafter("list")[1]

    def test_what_was_distilled_elsewhere_is_published(self, drafter: Any, tmp_path: Path) -> None:
        state, manifest = self.first_weights(tmp_path), self.first_manifest(tmp_path)
        file = tmp_path / "portable.safetensors"
        write_drafter(file, "tiny", manifest, state, {})
        status, out, err = drafter("publish", file)
        assert status == 0 and "version 2" in out, err
        (path,) = (tmp_path / "state" / "weights").rglob("v000002.safetensors")
        assert {tensor.dtype for tensor in load_file(path).values()} == {tensor.dtype for tensor in state.values()}

    def test_what_was_distilled_for_something_else_is_not_published(self, drafter: Any, tmp_path: Path) -> None:
        before = self.store_files(tmp_path)
        state, manifest = self.first_weights(tmp_path), self.first_manifest(tmp_path)
        file = tmp_path / "portable.safetensors"
        size = next(name for name in ("window_tokens", "num_hidden_layers") if name in manifest.config)
        write_drafter(file, "tiny", replace(manifest, kind="other"), state, {})
        assert "'other' drafter" in the_error(drafter("publish", file))
        write_drafter(file, "large", manifest, state, {})
        assert "'large', not 'tiny'" in the_error(drafter("publish", file))
        write_drafter(file, "tiny", replace(manifest, config={**manifest.config, size: 999}), state, {})
        assert f"its {size} is 999" in the_error(drafter("publish", file))
        # Where and by what it was written does not matter.
        moved = {**manifest.config, "_name_or_path": "elsewhere", "transformers_version": "9"}
        write_drafter(file, "tiny", replace(manifest, config=moved), state, {})
        assert self.store_files(tmp_path) == before
        assert drafter("publish", file)[0] == 0

    def test_what_is_unfit_is_not_published(self, drafter: Any, tmp_path: Path) -> None:
        before = self.store_files(tmp_path)
        state = self.first_weights(tmp_path)
        name = next(name for name, tensor in sorted(state.items()) if tensor.is_floating_point() and tensor.dim() == 2)
        file = tmp_path / "unfit.safetensors"

        save_file({**state, name: state[name][:, :-1].contiguous()}, file)
        assert name in (error := the_error(drafter("publish", file))) and "shape" in error
        save_file({other: tensor for other, tensor in state.items() if other != name}, file)
        assert name in (error := the_error(drafter("publish", file))) and "missing" in error
        save_file({**state, "stranger": torch.zeros(1)}, file)
        assert "stranger" in the_error(drafter("publish", file))
        save_file({**state, name: torch.full_like(state[name], torch.nan)}, file)
        assert name in (error := the_error(drafter("publish", file))) and "NaN" in error

        file.write_bytes(file.read_bytes()[:-100])
        assert str(file) in the_error(drafter("publish", file))
        file.write_text("not a tensor in sight, but long enough to have a header")
        assert str(file) in the_error(drafter("publish", file))
        file.write_bytes(b"")
        assert str(file) in the_error(drafter("publish", file))
        file.unlink()
        assert str(file) in the_error(drafter("publish", file))
        assert str(tmp_path) in the_error(drafter("publish", tmp_path))

        assert "no sound predecessor" in the_error(drafter("rollback"))
        assert "9" in the_error(drafter("show", 9))
        assert self.store_files(tmp_path) == before

    @pytest.mark.parametrize(("flags", "note"), [((), "shipped; distilled elsewhere"), (("--untrained",), "untrained")])
    def test_the_first_version_is_the_shipped_one(
        self,
        osd: Any,
        target: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        flags: tuple[str, ...],
        note: str,
    ) -> None:
        options = ("--target", target, "--state-dir")
        assert osd("drafter", "init", *options, tmp_path / "state")[0] == 0
        monkeypatch.setattr(shipped, "SHIPPED_WEIGHTS", tmp_path)
        file = tmp_path / "tiny.feature.safetensors"
        write_drafter(file, "tiny", self.first_manifest(tmp_path), self.first_weights(tmp_path), {})
        status, out, err = osd("drafter", "init", *flags, *options, tmp_path / "other")
        assert status == 0 and "version 1" in out and note in out, err
        assert note in osd("drafter", "list", *options, tmp_path / "other")[1]

    def test_nothing_is_there_yet(self, osd: Any, target: Path, tmp_path: Path) -> None:
        options = ("--target", target, "--state-dir", tmp_path / "state")
        assert "osd drafter init" in the_error(osd("drafter", "publish", tmp_path / "x", *options))
        assert "nothing was published" in the_error(osd("drafter", "rollback", *options))
        assert osd("drafter", "list", *options)[0] == 0


def test_a_start_is_told_in_plain_lines_where_there_is_no_terminal(osd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import serve

    def run_server(_: Any, *, on_progress: Any, on_ready: Any, on_news: Any) -> None:
        on_progress("converting a.gguf (once)", 0.0)
        for number in range(100):
            on_progress("writing weights", number / 100)
        on_progress("loading the [target]", 0.6)
        on_ready(serve.Serving("http://127.0.0.1:1", "smollm2", "feature v1", "CPU: AVX2", None))
        on_news("compiled kernels took over from torch")

    monkeypatch.setattr(serve, "run_server", run_server)
    status, out, err = osd("serve")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "starting, 0%: converting a.gguf (once)",
        "starting, 0%: writing weights",
        "starting, 60%: loading the [target]",
    ]
    assert lines[3].startswith("osd serves smollm2 on http://127.0.0.1:1/v1")
    assert lines[-1] == "compiled kernels took over from torch"
