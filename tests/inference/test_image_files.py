"""Finding images, and naming their outputs."""

from pathlib import Path

import pytest
from PIL import Image

from seglab.core.errors import InputError
from seglab.inference.image_files import find_images


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def test_names_never_collide(pictures: Path, tmp_path: Path) -> None:
    write_images(pictures, "a/one.jpg", "b/Two.png")
    assert sorted(find_images([pictures])) == [
        *("a/deep/one", "a/one.jpg", "a/one.png", "b/Two.png", "b/three", "b/two.jpg")
    ]
    # Files that are given by name keep the folders below the one that they share.
    files = [pictures / "a" / "one.png", pictures / "a" / "deep" / "one.png"]
    assert find_images(files) == {"one": files[0], "deep/one": files[1]}
    assert find_images([files[1], files[1].parent]) == {"one": files[1]}
    write_images(tmp_path / "alike", "x.png", "x.jpg", "x.jpg.bmp")
    with pytest.raises(InputError, match=r"x.jpg.bmp: its outputs would have the names of .*x.jpg"):
        find_images([tmp_path / "alike"])


def test_outputs_are_no_images(pictures: Path, tmp_path: Path) -> None:
    names = sorted(find_images([pictures]))
    assert names == ["a/deep/one", "a/one", "b/three", "b/two"]
    (tmp_path / "link").symlink_to(pictures)
    assert sorted(find_images([tmp_path / "link"])) == names
    outs = (pictures, pictures / "out", pictures / "a" / "deep" / "out")
    for out in outs:
        write_images(out, "masks/a/one.png", "probabilities/lesion/two.png")
    assert len(find_images([pictures])) == len(names) + 2 * len(outs)
    for out in outs:
        (out / "manifest.json").touch()
    assert sorted(find_images([pictures])) == sorted(find_images([tmp_path / "link"])) == names
    masks = pictures / "masks"
    for given in (masks, masks / "a", masks / "a" / "one.png"):
        with pytest.raises(InputError, match="no image in it"):
            find_images([given])
    write_images(pictures, "masked/one.png", "Masks of mine/two.png")
    assert len(find_images([pictures])) == len(names) + 2


def test_what_is_not_there_is_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: not there; expected an image or a folder"):
        find_images([pictures, pictures / "nowhere"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"bare: no image in it"):
        find_images([tmp_path / "bare"])


def test_a_data_set_is_not_predicted_with_its_masks(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    with pytest.raises(InputError, match=r"holds masks beside images; name .*/images alone"):
        find_images([tmp_path])
