"""The output folder of `predict`: what --overwrite deletes."""

from pathlib import Path

import pytest

from seglab.core.errors import InputError
from seglab.inference.manifest import open_manifest


def test_overwrite_deletes_listed_outputs_and_nothing_else(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.png").touch()
    manifest = open_manifest(out, {"threshold": 0.5}, False)
    for name in ("a", "deep/b", "../x", f"{elsewhere}/a"):  # the last two by another's hand
        manifest.add(name, sha256="")
    manifest.save()
    listed = ["masks/a.png", "masks/deep/b.png", "probabilities/lesion/a.png", "instances.csv"]
    unlisted = ["masks/mine.png", "masks/a.txt", "notes.txt", "x.png"]
    for name in (*listed, *unlisted):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    (out / "overlays").symlink_to(elsewhere)
    with pytest.raises(InputError, match="--overwrite"):
        open_manifest(out, {"threshold": 0.4}, False)
    assert open_manifest(out, {"threshold": 0.4}, True).images == {}
    assert not any((out / name).exists() for name in (*listed, "overlays"))
    assert all((out / name).exists() for name in unlisted)
    assert (elsewhere / "a.png").exists()
