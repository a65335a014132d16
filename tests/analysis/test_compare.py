"""compare.py on run directories that the tests write: what it prints and what it refuses."""

import csv
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.fake_runs import (
    CASES,
    SEEDS,
    assert_values,
    by_hand,
    contents,
    read_table,
    write_run,
    write_sweep,
)
from helpers.tiny import REPO, Ended

from seglab.analysis.compare import compare
from seglab.metrics.scores import METRICS
from seglab.runs.records import find_runs

Script = Callable[..., Ended]
pytestmark = pytest.mark.usefixtures("few_resamples")
HEAD = (
    "outline_shift,missed_pieces,extra_pieces,"
    "id,diagnosis,tp,fp,fn,tn,hd95,surface_dice,confidence,view_dice\n"
)


def test_what_the_terminal_shows(tmp_path: Path, script: Script) -> None:
    root = write_sweep(tmp_path / "sweep")
    ended = script("compare", root)
    assert (ended.code, ended.err) == (0, "")
    above, _, head, first, *_ = ended.out.splitlines()
    assert above == (
        "9 test cases; 2 folds, each case out of fold once; split seed 42; scored at native "
        "resolution; seeds 0, 1, 2: mean ± standard deviation over seeds [95 % interval over seeds "
        "and cases]; without ±: value [95 % interval over cases]"
    )
    assert "an interval over seeds and cases is for training again with another seed" in ended.out
    assert "two seeds" not in ended.out
    metrics = ["dice_per_image", "iou_per_image", "pixel_accuracy"]
    assert head.split()[:7] == ["model", "n", *metrics, "val", "runs"]
    values = by_hand("SegNet", SEEDS, list(CASES))["dice_per_image"]
    mean, sd = statistics.mean(values), statistics.stdev(values)
    assert re.match(rf"SegNet +9 +{mean:.3f} ± {sd:.3f} \[0\.\d+, 0\.\d+\]  ", first)
    assert first.endswith("  1.500     6       1,000        0.005 G       11      20.5")
    assert not list(tmp_path.glob("[!s]*"))
    ended = script("compare", root, "--metrics", "hd95,ece,hd95")
    assert ended.out.splitlines()[2].split()[1:5] == ["n", "hd95", "ece", "val"]
    hd95 = statistics.mean(by_hand("SegNet", SEEDS, list(CASES))["hd95"])
    assert f" {hd95:.1f} ± " in ended.out.splitlines()[3]
    assert set(METRICS) < set(script("compare", root, "--metrics", "all").out.split())


def test_what_is_not_there_is_said_and_nothing_is_dropped(tmp_path: Path, script: Script) -> None:
    root = write_sweep(tmp_path / "sweep")
    shutil.rmtree(root / "UNet-1-1")
    shutil.rmtree(root / "UNet-2-0")
    error = f"OutOfMemoryError: line 1\n  line 2 \x1b[31m{'x' * 200}"
    write_run(root / "UNet-2-0", "UNet", 2, 0, "failed", error)
    write_run(root / "gone", "UNet", 0, 0, "failed", "RuntimeError: lr", task__optimizer__lr=9.0)
    write_run(root / "later", "UNet", 0, 0, "planned", task__optimizer__lr=0.5)
    write_run(root / "stopped", "UNet", 0, 0, "interrupted", task__optimizer__lr=0.25)
    write_run(root / "now", "UNet", 0, 0, "running", task__optimizer__lr=0.125)
    ended = script("compare", root, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    row = next(line for line in lines if re.match("UNet +0.001 ", line))
    assert row.count("*") == 3
    assert " 4 of 6 " in row
    cut = f"OutOfMemoryError: line 1 line 2 ?[31m{'x' * 200}"[:100] + "..."
    assert (
        f"* UNet, lr=0.001: missing: seed 1 fold 1; failed ({cut}): seed 2 fold 0; "
        "left out of the values, as incomplete: seed 1 (5 of 9 cases), seed 2 (4 of 9 cases)"
    ) in lines
    record = read_table(tmp_path / "out" / "table.csv")["UNet, lr=0.001"]
    assert (record["status"], record["runs"], record["n"]) == ("incomplete", "6", "9")
    assert_values(record, by_hand("UNet", (0,), list(CASES)))
    assert (record["training_seconds"], record["val_dice_per_image"]) == ("10.0", "1.25")
    for lr, word in (("9.0", "failed"), ("0.5", "planned"), ("0.25", "interrupted")):
        assert re.search(rf"^UNet +{lr} +- +{word} +{word} +{word} +- +0 of 2 ", ended.out, re.M)
    assert "UNet, lr=9.0: failed (RuntimeError: lr): seed 0 fold 0; missing: seed 0 fold 1\n" in (
        ended.out
    )
    assert re.search(r"^UNet +0.125 +- +running or killed ", ended.out, re.M)
    runs = list(csv.DictReader((tmp_path / "out" / "runs.csv").open(newline="")))
    assert sorted(r["run"] for r in runs) == sorted(p.name for p in root.iterdir())


def test_seeds_in_rows_of_their_own_have_no_interval_over_seeds(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "SegNet", seed=1)
    first, *lines = compare([tmp_path]).splitlines()
    assert first.endswith("; seeds 0, 1: value [95 % interval over cases]")
    assert not any("±" in line or "seeds and cases" in line for line in lines)


@pytest.mark.usefixtures("no_figures")
def test_what_a_reader_is_warned_of(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    many = {f"C{i}": "" for i in range(50)}
    rates = {"task.optimizer.lr": "1", "model": "a"}
    write_run(root / "a", cases=many, varies=rates)
    text = compare([root])
    for words in ("too narrow", "states of seglab", "different data", "choose by val"):
        assert words not in text
    write_run(root / "b", seed=1, cases=many, source="code, mended", data="other")
    text = compare([root])
    assert "runs of 2 states of seglab's code stand in one table" in text
    assert "runs of one protocol read different data: baseline, UNet" in text
    assert "choose by val" not in text
    assert "; seeds 0, 1: mean ± standard deviation over seeds [95 % interval over seeds" in text
    assert "intervals over two seeds are wide" in text
    write_run(root / "c", status="pruned", error="at epoch 3", task__optimizer__lr=1.0)
    write_run(root / "d", "SegNet", cases=dict(list(many.items())[1:]))
    lines = compare([root]).splitlines()
    assert re.search(r"^UNet +1.0 +- +pruned +pruned +pruned +- +0 of 1 ", "\n".join(lines), re.M)
    assert "UNet, lr=1.0: pruned (at epoch 3): seed 0" in lines
    assert any(line.startswith("intervals over fewer than 50 cases are too") for line in lines)
    assert lines[-1] == "choose by val: test values of many rows flatter the best of them"
    shutil.rmtree(root / "c")
    assert "choose by val" not in compare([root])
    two = {"varies": {"task.optimizer.lr": 1, "model": "a"}, "task__optimizer__lr": 2.0}
    write_run(root / "e", "SegNet", **two)
    assert compare([root]).splitlines()[-1] == lines[-1]


def test_nothing_finished_at_all(tmp_path: Path, script: Script) -> None:
    write_run(tmp_path / "runs" / "a", status="failed", error="ValueError: no")
    ended = script("compare", tmp_path / "runs", "--out", tmp_path / "out", "--by-diagnosis")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("no finished run\n")
    assert "baseline, UNet: failed (ValueError: no): seed 0" in ended.out
    assert {*contents(tmp_path / "out")} == {"table.md", "table.tex", "table.csv", "runs.csv"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--versus", "x", "otsu"], "--versus 'x': expected the label of one row, or how it"),
        (["--metrics", "dice"], "--metrics dice: expected one of dice_per_image, iou_per_image, "),
        (["--versus", "UNET", "u"], "--versus 'UNET' 'u': both are the row 'UNet'; name two rows"),
        (["--power"], "--power: is of pairs of rows; name them with --versus A B"),
        (["--versus", "unet", "segnet", "--power", "0"], "--power=0.0: expected a number from"),
        (["--metric", "ece"], "--metric ece: expected one of dice_per_image, "),
        (["--out", "/proc/none"], "/proc/none: "),
    ],
)
def test_options_that_mean_nothing(
    tmp_path: Path, script: Script, options: list[str], line: str
) -> None:
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", "SegNet")
    ended = script("compare", tmp_path / "runs", *options)
    assert ended.code == 1
    assert ended.out == ""
    assert line in ended.err
    assert ended.err.count("\n") == 1


def test_folders_without_runs(tmp_path: Path, script: Script) -> None:
    run = write_run(tmp_path / "runs" / "a")
    write_run(run / "reproductions" / "x")  # part of the run above it
    assert [[found.label for found in find_runs([f])] for f in (run.parent, run)] == [["a"], ["."]]
    (tmp_path / "empty").mkdir()
    for folder, what in (
        (tmp_path / "empty", "holds no run"),
        (tmp_path / "no", "cannot be searched"),
    ):
        ended = script("compare", tmp_path / "runs", folder)
        assert ended.code == 1
        assert ended.err.startswith(f"error: {folder}: {what}")
        assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", '{"status": "odd"}'),
        ("run.json", '{"status": "planned", "config": ' + '{"a": ' * 990 + "1" + "}" * 991),
        ("config.yaml", "a: &a [1]\nb: *a"),
        ("summary.json", '{"val": {}, "test": {"x": NaN}, "seconds": {"training_steps": 1}}'),
        ("test_cases.csv", HEAD),
        ("test_cases.csv", f"{HEAD},0,0,C0,,1,1,1,-1,1,1,1,\n"),
        ("test_cases.csv", f"{HEAD},0,0,C0,,1,1,1,1,1,1,1,\n,0,0,C0,,1,1,1,1,1,1,1,\n"),
        ("test_cases.csv", f"{HEAD},0,0,C0,,1,1,1,{10**400},1,1,1,\n"),
        ("test_cases.csv", f"{HEAD},0,0,C0,,1,1,1,1,inf,1,1,\n"),
        ("test_cases.csv", f"{HEAD},0,0,C0,,1,1,1,1,1,1,,\n"),
        ("test_cases.csv", f"{HEAD},0,0,C0,,1,1,1,1,1,1,1\n"),
        ("baseline_cases.csv", f"{HEAD},0,0,C0,,1,1,1,1,1,1,1,\n"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, script: Script, name: str, content: str) -> None:
    file = write_run(tmp_path / "runs" / "a") / name
    file.write_text(content)
    ended = script("compare", tmp_path / "runs", "--out", tmp_path / "out")
    assert ended.code == 1, ended.out
    assert ended.err.startswith(f"error: {file}: ")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_byte_for_byte_the_same_in_any_order_and_place(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "one" / "x")
    write_run(tmp_path / "one" / "y" / "late", status="failed", error="E", model="Other")
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(tmp_path / "one", moved)
    options = ("--by-diagnosis", "--versus", "unet", "segnet", "--power")
    first = script(
        "compare", tmp_path / "one/x", tmp_path / "one/y", *options, "--out", tmp_path / "A"
    )
    monkeypatch.chdir(moved)
    second = script("compare", "y", "x", "x", *options, "--out", tmp_path / "B")
    assert first.code == second.code == 0
    assert first.out == second.out
    assert contents(tmp_path / "A") == contents(tmp_path / "B")
    names = ("table", "versus", "power")
    tables = {f"{name}.{suffix}" for name in names for suffix in ("md", "tex", "csv")}
    assert set(contents(tmp_path / "A")) == {*tables, "runs.csv", "dice_boxes.png"}
    runs = list(csv.DictReader((tmp_path / "A" / "runs.csv").open(newline="")))
    assert (runs[0]["run"], runs[-1]["run"]) == ("x/SegNet-0-0", "y/late")
    assert script("compare", "x", "--out", tmp_path / "A").code == 0
    assert not list((tmp_path / "A").glob("versus.*"))


def test_names_that_mean_something_to_a_reader_of_the_table(tmp_path: Path) -> None:
    hostile = r"a|b_&%$#{x}~^\c*<d>" + "\x1b[31mé"
    write_run(tmp_path / "runs" / "a", name=hostile)
    write_run(tmp_path / "runs" / "b", name="plain $x$", seed=1)
    text = compare([tmp_path / "runs"], out=tmp_path / "out")
    sanitized = hostile.replace("\x1b", "?")
    assert sanitized in text
    assert "\x1b" not in text
    markdown = (tmp_path / "out" / "table.md").read_text().splitlines()
    row = next(line for line in markdown if line.startswith("| a"))
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == len(markdown[2].split("|"))
    assert re.sub(r"\\(.)", r"\1", cells[1].strip()) == sanitized
    latex = (tmp_path / "out" / "table.tex").read_text()
    escaped = r"a\textbar{}b\_\&\%\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}c*"
    assert f"{{{escaped}\\textless{{}}d\\textgreater{{}}?[31mé}} & " in latex
    rows = re.findall(r"^\{.*\\\\$", latex, re.M)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(cells) - 3}
    plain = re.sub(r"\\textbackslash\{\}|\\[{}]", "", latex)
    assert plain.count("{") == plain.count("}")
    assert re.findall(r"\\(?:begin|end)\{(\w+)\}", latex) == [
        *("table", "tabular", "tabular", "table")
    ]
    for command in ("caption", "toprule", "midrule", "bottomrule"):
        assert latex.count(f"\\{command}") == 1


def test_a_narrow_terminal_shows_all_of_it(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "runs")
    wide = compare([root], versus=[("unet", "otsu")], by_diagnosis=True)
    narrow = compare([root], versus=[("unet", "otsu")], by_diagnosis=True, width=80)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    assert {*re.findall(r"[\w.]+", wide)} == {*re.findall(r"[\w.]+", narrow)}


def test_it_starts_without_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    code = (
        "import sys; from seglab.analysis.compare import compare; "
        f"compare([{str(tmp_path / 'runs')!r}], out={str(tmp_path / 'out')!r}); "
        "assert 'numpy' in sys.modules; "
        "print([m for m in ('torch', 'lightning', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
