"""Commands of the READMEs: first steps and sweeps, as they stand, on smaller data; and links."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.sweeps import fake_slurm
from helpers.tiny import REPO, TINY, Ended
from PIL import Image

from seglab.core.files import read_csv
from seglab.data.synthetic import synthetic_cases


def commands(readme: str, section: str) -> list[str]:
    page = (REPO / readme).read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [
        line.partition("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]


@pytest.fixture
def run(
    script: Callable[..., Ended],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Ended]:
    """Runs a command in tmp_path: run("python scripts/NAME.py ARGUMENTS", *more)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGLAB_CACHE", str(cache_dir))

    def run(command: str, *more: str) -> Ended:
        python, file, *arguments = shlex.split(command)
        assert python == "python" and (REPO / file).exists()
        return script(Path(file).stem, *arguments, *more)

    return run


# What makes each command of the page small, and nothing else.
SMALLER = {
    "-m model=segnet,unet seed=0,1,2": ["model=unet", "seed=0,1", "data.split.fold=0"],
    "-m sweep=folds seed=0,1 ": ["data.split.fold=0"],
    "-m sweep=folds seed=0,1,2": ["data.split.fold=0"],
    "sweep=tpe hydra.sweep.dir": ["hydra.sweeper.n_trials=1"],
    "-m sweep=tpe 'model.depth": ["hydra.sweeper.n_trials=1", "model.depth=choice(1,2)"],
    "sweep=models hydra/launcher": [],
}


@pytest.mark.slow
def test_commands_of_the_page_on_sweeps_do_what_it_says(
    run: Callable[..., Ended], tiny_ph2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = f"cat $1 > {tmp_path / 'batch'}; echo Submitted batch job 7"
    fake_slurm(tmp_path, monkeypatch, srun="exit 0", squeue="exit 0", sbatch=sbatch)
    tiny = [f"data.root={tiny_ph2}", *TINY]
    left = dict(SMALLER)
    for command in commands("seglab/sweeps/README.md", "Commands"):
        key = next((key for key in left if f"train.py {key}" in command), None)
        if "compare.py" in command:
            ended = run(command)
            assert ended.code == 0, ended.err
            assert "paired" in ended.out or "p (Holm)" in ended.out
            assert (tmp_path / "runs" / "folds-table" / "table.tex").exists()
            continue
        assert key is not None, f"not tried by this test: {command}"
        ended = run(command, *tiny, *left.pop(key))
        if "slurm" in command:  # there is none: its jobs are gone at once
            assert ended.code == 1
            batch = (tmp_path / "batch").read_text()
            assert "--partition=gpu" in batch
            assert "--array=0-5" in batch
            continue
        assert ended.code == 0, ended.err
        if "sweep=folds seed=0,1,2" in command:
            assert "6 jobs: 6 finished" in ended.err
    assert not left
    (grid,) = (tmp_path / "runs" / "baseline").iterdir()
    assert [row["job"] for row in read_csv(grid / "jobs.csv")] == ["seed-0", "seed-1"]
    assert (tmp_path / "runs" / "tpe" / "jobs.csv").exists()


def write_isic(root: Path) -> None:
    """Writes ten drawn cases in the layout of ISIC 2018."""
    root.mkdir()
    for case in synthetic_cases(root.parent / "drawn", n=10):
        number = f"ISIC_{int(case.id[-3:]):07}"
        Image.open(case.image).save(root / f"{number}.jpg")
        Image.open(case.mask).save(root / f"{number}_segmentation.png")


# What makes each of the first steps small, by how it begins.
QUICK = {
    "train.py data=synthetic": ["data.cases.n=10", "data.batch_size=4", *TINY],
    "train.py -m model": [*TINY, "data.split.fold=0"],
    "train.py data=pairs": TINY,
    "train.py -m experiment=best": ["model=unet", *TINY, "trainer.max_epochs=1"],
    "train.py -m experiment=dermoscopy": ["model=unet", *TINY, "data.split.fold=0,1"],
    "train.py -m sweep=learning_curve": ["model=unet", *TINY, "data.split.fold=0,1"],
}


@pytest.mark.slow
def test_first_steps_do_what_they_say(
    run: Callable[..., Ended], tiny_ph2: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PH2Dataset").symlink_to(tiny_ph2)
    for subfolder, suffix in (("images", "_Dermoscopic_Image/*.bmp"), ("masks", "_lesion/*.bmp")):
        (tmp_path / "mine" / subfolder).mkdir(parents=True)
        for file in tiny_ph2.glob(f"*/*/*{suffix}"):
            name = file.name.replace("_lesion", "")
            (tmp_path / "mine" / subfolder / name).write_bytes(file.read_bytes())
    (tmp_path / "pictures").symlink_to(tmp_path / "mine" / "images")
    (tmp_path / "MASKS").symlink_to(tmp_path / "mine" / "masks")
    write_isic(tmp_path / "data" / "isic2018")
    left = dict(QUICK)
    for command in commands("README.md", "First steps"):
        if command.startswith("tensorboard") or "tutorial.py" in command:
            continue  # serves until it is stopped; has a test of its own
        key = next((key for key in left if f"scripts/{key}" in command), None)
        more = left.pop(key) if key else []
        ended = run(command, *more)
        assert ended.code == 0, (command, ended.err)
    assert not left
    for file in ("two-table/table.tex", "two/report.html", "mine/network.onnx"):
        assert (tmp_path / "runs" / file).is_file()
    assert (tmp_path / "check.png").is_file()
    masks = {file.name for file in (tmp_path / "masks" / "masks").iterdir()}
    assert masks == {f"IMD{i:03}.png" for i in range(20)}
    quality = read_csv(tmp_path / "reviewed" / "quality.csv")
    assert {row["picture"] for row in quality} == {f"IMD{i:03}" for i in range(20)}
    assert all(row["review"] in ("True", "False") for row in quality)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


FOLDERS = ("conf", "scripts", "seglab", "tests")
PAGES = [
    REPO / "README.md",
    *(p for folder in FOLDERS for p in (REPO / folder).rglob("README.md")),
]


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted((REPO / ".github").glob("*.md"))],
    ids=lambda page: page.relative_to(REPO).as_posix(),
)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_root_readme_links_to_every_other() -> None:
    text = (REPO / "README.md").read_text()
    for page in PAGES[1:]:
        assert page.relative_to(REPO).as_posix() in text
