"""A service whose drafter versions and checkpoint are in an object store, a local double of S3."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

from osd.config.paths import checkpoint_path, weights_path
from osd.io.url_folder import open_folder
from osd.io.weight_store import FileWeightStore
from tests.e2e.conftest import run_service, service_config
from tests.kit.saved_models import save_llama
from tests.kit.stores import s3_server, url_of
from tests.kit.waiting import wait_for
from trainer.loop.checkpoint import CheckpointFolder

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(280)]


def test_a_service_learns_with_nothing_but_the_store(tmp_path: Path) -> None:
    with s3_server() as options:
        store = {"url": url_of("s3", tmp_path), "options": options}
        target = save_llama(tmp_path / "tiny", context_tokens=1024)
        config = service_config(tmp_path / "state", target, store=store)
        versions = FileWeightStore(open_folder(config, weights_path("tiny", "feature")))

        with contextmanager(run_service)(config) as service:
            wait_for(lambda: service.acceptance() >= 0 and len(versions.list()) > 1, "a version of the trainer's own")
            service.train(paused=True)
            wait_for(lambda: service.status()["engine"]["drafter_version"] > 1, "the engine to serve it")
        checkpoint = CheckpointFolder(open_folder(config, checkpoint_path("tiny", "feature"))).load()
        assert checkpoint is not None and checkpoint.records
        for manifest in versions.list():
            versions.load(manifest.number)
    assert not {"weights", "checkpoints"} & {path.name for path in (tmp_path / "state").iterdir()}
