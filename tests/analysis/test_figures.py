"""Pictures: colours by hand, PNG files that are whole and equal each time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from seglab.analysis.figures import (
    ERROR_LEGEND,
    error_map,
    grid,
    save_boxes,
    save_cases,
    save_curves,
)

WHITE, RED, BLUE, BLACK = (255, 255, 255), (230, 85, 60), (60, 125, 230), (0, 0, 0)
MONITOR = "val/dice_per_image_net"


def epochs(n: int, *names: str) -> list[dict[str, Any]]:
    """Rows as in metrics.csv."""
    return [
        {"epoch": e, "step": 4 * e, "lr": 1e-3} | {k: 1 / (e + i) for i, k in enumerate(names)}
        for e in range(1, n + 1)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    draw = FigureCanvasAgg.draw

    def keep(canvas: FigureCanvasAgg) -> None:
        figures.append(canvas.figure)
        draw(canvas)

    monkeypatch.setattr(FigureCanvasAgg, "draw", keep)
    return figures


def panels(figure: Figure) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Points of every line, by the panel's label and the line's own."""
    out = {}
    for axis in figure.axes:
        lines = {str(x.get_label()): [tuple(p) for p in x.get_xydata()] for x in axis.get_lines()}
        assert axis.get_xlabel() == "epoch"
        assert [text.get_text() for text in axis.get_legend().get_texts()] == list(lines)
        out[axis.get_ylabel()] = lines
    assert len(out) == len(figure.axes)
    return out


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        # Neither dates nor versions.
        assert set(image.info) <= {"dpi"}
        image.load()
        return np.asarray(image.convert("RGB"))


def pair(height: int = 12, width: int = 16) -> dict[str, list[np.ndarray]]:
    random = np.random.default_rng(0)
    return {
        "image": [random.integers(0, 256, (height, width, 3), np.uint8) for _ in range(2)],
        "mask": [np.zeros((height, width), bool), np.ones((height, width), bool)],
    }


def test_error_map_by_hand() -> None:
    pred = np.array([[True, True, False], [False, True, False]])
    target = np.array([[True, False, True], [False, True, True]])
    colours = error_map(pred, target)
    assert colours.dtype == np.uint8
    assert colours.tolist() == [
        [list(WHITE), list(RED), list(BLUE)],
        [list(BLACK), list(WHITE), list(BLUE)],
    ]
    for word, (red, green, blue) in {"white": WHITE, "red": RED, "blue": BLUE}.items():
        assert f"{word}: " in ERROR_LEGEND
        assert {"white": red == green == blue, "red": red > 2 * green, "blue": blue > 2 * red}[word]


def test_grid_by_hand() -> None:
    images = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    out = grid([images, images[::-1]])
    assert (out.dtype, out.shape) == (np.uint8, (2 * (2 + 4), 2 * (3 + 4), 3))
    assert np.array_equal(out[:2, :3], images[0])
    assert np.array_equal(out[:2, 7:10], images[1])
    assert np.array_equal(out[6:8, :3], images[1])
    assert (out[2:6] == 128).all() and (out[:, 3:7] == 128).all()


def test_cases_stand_below_each_other_under_titles(tmp_path: Path, drawn: list[Figure]) -> None:
    columns = pair(12, 18)
    save_cases(tmp_path / "pairs.png", columns, ["IMD001", "IMD002"], note="a note")
    page = read_png(tmp_path / "pairs.png")
    size = np.array(page.shape[1::-1])
    texts = {x.get_text(): np.rint(x.get_position() * size).astype(int) for x in drawn[0].texts}
    assert list(texts) == ["image", "mask", "IMD001", "IMD002", "a note"]
    for title, pictures in columns.items():
        for name, picture in zip(("IMD001", "IMD002"), pictures, strict=True):
            x, y = texts[title][0], len(page) - texts[name][1]  # the middle of a cell
            pixels = picture if picture.ndim == 3 else np.repeat(picture[..., None] * 255, 3, 2)
            shown = page[y - 90 : y + 90, x - 135 : x + 135]
            assert np.array_equal(shown, pixels.repeat(15, 0).repeat(15, 1))


def test_tall_and_wide_pictures_keep_their_shape(tmp_path: Path) -> None:
    pictures = [np.ones((20, 10), bool), np.ones((10, 20), bool)]
    save_cases(tmp_path / "a.png", {"mask": pictures}, [r"$\tall$", r"$\wide$"], note=r"$\foo$")
    cells = read_png(tmp_path / "a.png")[-548 - 30 : -30, -274:]
    assert (cells[0:270, 68:203] == 255).all()
    assert (cells[274 + 68 : 274 + 203, 0:270] == 255).all()
    assert (cells == 255).all(2).sum() == 2 * 270 * 135


def test_a_probability_is_grey_between_black_and_white(tmp_path: Path) -> None:
    for prob, grey in ((0.0, 0), (0.5, 127), (1.0, 255)):
        save_cases(tmp_path / "a.png", {"probability": [np.full((12, 16), prob)]}, ["x"])
        picture = read_png(tmp_path / "a.png").astype(int)
        assert (abs(picture - grey).max(2) <= 1).mean() > 0.5


def test_curves_show_losses_and_the_monitored_metric(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["train/loss", "val/loss", "train/dice_per_image_net", MONITOR, "val/ece_net"]
    rows = epochs(4, *names)
    save_curves(tmp_path / "curves.png", rows, MONITOR)
    points = {name: [(row["epoch"], row[name]) for row in rows] for name in names}
    assert panels(drawn[0]) == {
        "loss": {name: points[name] for name in names[:2]},
        "dice_per_image_net": {name: points[name] for name in names[2:4]},
    }
    assert len(np.unique(read_png(tmp_path / "curves.png").reshape(-1, 3), axis=0)) > 10


def test_curves_skip_epochs_without_a_value(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = epochs(4, "train/loss", "val/loss", MONITOR)
    for row in rows[::2]:
        del row["val/loss"], row[MONITOR]
    save_curves(tmp_path / "curves.png", rows, MONITOR)
    drawn_points = panels(drawn[0])
    assert [x for x, _ in drawn_points["loss"]["train/loss"]] == [1, 2, 3, 4]
    assert [x for x, _ in drawn_points["loss"]["val/loss"]] == [2, 4]
    assert [x for x, _ in drawn_points["dice_per_image_net"][MONITOR]] == [2, 4]


def test_curves_of_one_epoch_are_visible(tmp_path: Path) -> None:
    save_curves(tmp_path / "one.png", epochs(1, "train/loss", "val/loss", MONITOR), MONITOR)
    blue = (31, 119, 180)  # matplotlib's first colour
    assert (read_png(tmp_path / "one.png") == blue).all(2).any()


@pytest.mark.parametrize(
    ("names", "monitor"),
    [
        (["train/loss", "test/loss"], "train/loss"),  # the recipe's
        (["train/loss", "val/loss"], "val/loss"),
        (["train/loss", "val/loss"], MONITOR),  # no value of it
    ],
)
def test_losses_are_drawn_once(
    tmp_path: Path, drawn: list[Figure], names: list[str], monitor: str
) -> None:
    save_curves(tmp_path / "curves.png", epochs(2, *names, "train/other"), monitor)
    ((title, lines),) = panels(drawn[0]).items()
    assert (title, list(lines)) == ("loss", names)
    (axis,) = drawn[0].axes
    low, high = axis.get_xlim()
    assert [x for x in axis.get_xticks() if low <= x <= high] == [1, 2]


def test_boxes_of_rows(tmp_path: Path, drawn: list[Figure]) -> None:
    save_boxes(tmp_path / "boxes.png", {"a $x$": [0.1, 0.2, 0.3], "b": [1.0]}, "dice")
    axis = drawn[0].axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == [r"a \$x\$", "b"]
    assert any([*line.get_xdata()] == [0.2, 0.2] for line in axis.get_lines())  # the median
    assert read_png(tmp_path / "boxes.png").std() > 1


def test_equal_calls_leave_equal_files_and_nothing_else(tmp_path: Path) -> None:
    rows = epochs(3, "train/loss", "val/loss", MONITOR)
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_cases(folder / "cases.png", pair(), ["x", "y"], "note")
        save_curves(str(folder / "curves.png"), rows, MONITOR)
    first, other = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in "ab")
    assert first == other
    assert sorted(first) == ["cases.png", "curves.png"]
