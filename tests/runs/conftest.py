"""A finished run that each test may damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import Ended

from seglab.core.errors import InputError
from seglab.runs.checkpoints import load_run_network
from seglab.runs.records import open_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished run, trained by the first test that needs it."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(
    finished: Path,
    tiny_train: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache_dir: Path,
) -> Path:
    """A copy of a finished run."""
    if not finished.exists():
        assert tiny_train(finished, "model.width=2", "trainer.max_epochs=1").code == 0
    monkeypatch.setenv("SEGLAB_CACHE", str(cache_dir))
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """File that a payload would make."""
    return tmp_path / "marker"


@pytest.fixture
def refuses(marker: Path) -> Callable[..., None]:
    """refuses(run, *words): opening the run is refused in one line with these words."""

    def check(run: Path, *words: str, trust: tuple[str, ...] = ()) -> None:
        with pytest.raises(InputError) as caught:
            load_run_network(open_run(run, trust), trust)
        message = str(caught.value)
        assert "\n" not in message
        for word in ("run", *words):
            assert word in message
        assert not marker.exists()

    return check
