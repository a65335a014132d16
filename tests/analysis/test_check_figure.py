"""The figure of pairs as they are read: which are drawn, and that each has its outline."""

from pathlib import Path

import numpy as np
from helpers.layouts import image_path, mask_path
from helpers.tiny import write_tiny_ph2
from PIL import Image

from seglab.analysis.check_figure import choose_cases, draw_check
from seglab.data.cases import Case
from seglab.data.checker import check_data


def test_odd_cases_come_first_and_the_others_are_spread() -> None:
    cases = [Case(f"c{i:02}", Path("i"), Path("m")) for i in range(60)]
    oddities = {f"c{i:02}": ["empty"] for i in range(3, 20)} | {"c50": ["full"], "c51": ["full"]}

    def ids(n: int) -> list[str]:
        return [case.id for case in choose_cases(cases, oddities, n)]

    assert ids(0) == []
    assert ids(4) == ["c05", "c50", "c09", "c51"]
    many = ids(24)
    assert {*many[:19]} == {*oddities} and len({*many}) == 24
    assert np.diff([int(id[1:]) for id in many[19:]]).min() > 5
    assert sorted(ids(100)) == [case.id for case in cases]
    assert len(choose_cases(cases[:3], {}, 12)) == 3


def test_each_pair_is_outlined_and_odd_ones_are_framed(
    tmp_path: Path,
) -> None:
    root = write_tiny_ph2(tmp_path / "data", 6)
    mask = mask_path(root, "IMD004")
    Image.new("L", Image.open(mask).size).save(mask)
    figure = tmp_path / "new" / "check.png"
    assert draw_check(figure, check_data(root), 5) == 5
    drawn = np.asarray(Image.open(figure).convert("RGB")).astype(int)
    cyan = (np.abs(drawn - (0, 255, 255)) < 40).all(axis=2)
    red = (np.abs(drawn - (178, 34, 34)) < 10).all(axis=2)
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 4
    tiles = [
        (slice(y * height, (y + 1) * height), slice(x * width, (x + 1) * width))
        for y in (0, 1)
        for x in range(4)
    ][:5]
    assert [bool(cyan[tile].sum() > 100) for tile in tiles] == [False, *[True] * 4]
    assert [bool(red[tile].sum() > 100) for tile in tiles] == [True, *[False] * 4]


def test_a_lesion_of_one_pixel_is_seen(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((1500, 2000), np.uint8)
    mask[701, 1003] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    Image.new("RGB", (2000, 1500), "white").save(tmp_path / "images" / "a.png")
    assert draw_check(tmp_path / "check.png", check_data(tmp_path), 12) == 1
    drawn = np.asarray(Image.open(tmp_path / "check.png").convert("RGB")).astype(int)
    assert (drawn[..., 1] - drawn[..., 0] > 100).any()


def test_nothing_to_draw_is_no_figure(tmp_path: Path) -> None:
    root = write_tiny_ph2(tmp_path / "data", 1)
    image_path(root, "IMD000").write_bytes(b"")
    assert draw_check(tmp_path / "check.png", check_data(root), 3) == 0
    assert not (tmp_path / "check.png").exists()
