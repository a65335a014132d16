"""Packs runs into one .zip for readers and reviewers: run directories, tables, report, checklist.

The tables are made from the packed run directories, so `compare` on the opened archive gives the
same bytes wherever it lies.
"""

import os
import re
import shutil
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from seglab import __version__
from seglab.analysis.checklist import make_checklist
from seglab.analysis.compare import compare
from seglab.analysis.grouping import make_rows
from seglab.analysis.model_card import code_span
from seglab.analysis.paired import find_pairs
from seglab.analysis.report import report
from seglab.core.commands import quote_for_shell
from seglab.core.errors import InputError, name_some
from seglab.core.files import expand_user, hash_file, is_utf8, write_atomic
from seglab.runs.paths import RunPaths, refuse_run_files
from seglab.runs.records import Run, find_runs, to_text

POWER_WIDTH = 0.01  # as `compare --power` without a number
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest; the same files give the same archive


def bundle(
    dirs: Sequence[str | Path],
    out: str | Path | None = None,
    versus: Sequence[tuple[str, str]] = (),
    trust: tuple[str, ...] = (),
    data_root: str | Path | None = None,
) -> Path:
    """Write the archive of all runs at or below some folders.

    Args:
        dirs: Folders that hold runs, at any depth.
        out: File to write; None for the only folder's name with .zip, beside the folder.
        versus: Pairs of rows for paired tests, as in `compare`; their power is told, too.
        trust: Names of code that configs may hold, as in `open_run`; for the report's pictures.
        data_root: Where the runs' data is today; None for where it was.

    Returns:
        The file.

    Raises:
        InputError: There is no finished run, a row is unknown, a file is damaged or a link, or the
            archive exists or cannot be written.
    """
    file = _check_output(dirs, out)
    runs = find_runs(dirs)
    rows, _ = make_rows(runs)
    if not any(row.finished_runs for row in rows):
        raise InputError(
            f"{dirs[0]}: holds no finished run; name a folder of runs that train has ended"
        )
    find_pairs(versus, rows)  # refuses an unknown row before minutes are spent on the report
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / file.stem
        _copy_runs(dirs, runs, folder / "runs")
        packed = find_runs([folder / "runs"])
        text = compare(
            [folder / "runs"],
            metrics="all",
            versus=versus,
            power=POWER_WIDTH if versus else None,
            slices=True,
            out=folder / "tables",
        )
        write_atomic(folder / "tables.txt", f"{text}\n")
        write_atomic(folder / "REPORTING.md", make_checklist(packed, versus))
        write_atomic(folder / "environment.txt", _list_versions(packed))
        write_atomic(folder / "README.md", _make_readme(file.stem, packed, versus))
        report(dirs, folder / "report.html", trust, versus, data_root)
        _zip(folder, Path(scratch) / "zip")
        write_atomic(file, (Path(scratch) / "zip").read_bytes())
    return file


def _check_output(dirs: Sequence[str | Path], out: str | Path | None) -> Path:
    """Return the file to write; refuse a bad one before minutes are spent on the report."""
    if out is None and len(dirs) > 1:
        raise InputError("--out: name the file to write, there are several folders")
    folder = expand_user(dirs[0]).resolve()
    file = folder.with_name(f"{folder.name}.zip") if out is None else expand_user(out)
    refuse_run_files(file)
    if file.suffix != ".zip" or file.exists():
        raise InputError(
            f"{file}: expected the name of a new file that ends in .zip; name one with --out"
        )
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{file}: its folder cannot be written; name another file with --out")
    return file


def _copy_runs(dirs: Sequence[str | Path], runs: Sequence[Run], target: Path) -> None:
    """Copy what readers need of runs and of the folders around them, in the same layout."""
    roots = [expand_user(d).resolve() for d in dirs]
    base = Path(os.path.commonpath(roots))  # labels of runs are paths below it
    files = {file for run in runs for file in _list_files(run.paths)}
    for folder in {parent for run in runs for parent in run.folder.parents}:
        if any(folder.is_relative_to(root) for root in roots):
            calibration = RunPaths(folder).calibration
            files |= {folder / "jobs.csv", calibration, calibration.with_suffix(".png")}
    for file in sorted(file for file in files if os.path.lexists(file)):
        # A link could bring any file of this machine into the archive.
        if not is_utf8(file) or file.resolve() != file or not file.is_file():
            raise InputError(
                f"{os.fsencode(file).decode('utf-8', 'backslashreplace')}: expected a regular "
                "file, no link, with a name in UTF-8; replace it, or move its run elsewhere"
            )
        copy = target / file.relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _list_files(paths: RunPaths) -> Iterator[Path]:
    """Yield the files of a run that readers need, whether they exist or not."""
    yield from (paths.record, paths.config, paths.split, paths.data, paths.code_diff)
    yield from (paths.metrics, paths.val_cases, paths.test_cases, paths.baseline_cases)
    yield from (paths.case_attributes, paths.summary, paths.model_card)
    yield from (paths.calibration, paths.calibration.with_suffix(".png"))
    for folder in (paths.figures, paths.masks):
        files = (file for file in folder.rglob("*") if not file.name.startswith("."))
        yield from (file for file in files if file.is_symlink() or not file.is_dir())
    for folder in paths.evaluations.glob("*"):
        evaluation = RunPaths(folder)
        yield from (evaluation.record, evaluation.config, evaluation.split)
        yield from (evaluation.summary, evaluation.test_cases, evaluation.case_attributes)
    yield from (RunPaths(folder).reproduction for folder in paths.reproductions.glob("*"))


def _list_versions(runs: Sequence[Run]) -> str:
    """List the versions that runs record, in the form of pip's requirements files."""
    labels: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    started = [run for run in runs if run.provenance.versions]
    for run in started:
        for name, version in run.provenance.versions.items():
            labels[name][version].append(run.label)
    lines = [
        "# Versions of all that was installed where the runs were trained, from run.json. seglab",
        "# needs a part of it: pip install -e . -c environment.txt installs that part.",
        "# A version with + is not on PyPI: of torch, see https://download.pytorch.org/whl/.",
    ]
    for name, versions in labels.items():
        most_used = max(versions, key=lambda version: len(versions[version]))
        requirement = f"{name}=={most_used}"
        # Text of a stranger's run must not become an option of pip.
        is_plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!-]*", requirement)
        is_listed = is_plain and name not in ("python", "seglab")
        lines.append(requirement if is_listed else f"# {requirement}")
        missing = [run.label for run in started if name not in run.provenance.versions]
        different = {v: found for v, found in versions.items() if v != most_used}
        if missing:
            different["not installed"] = missing
        lines += [f"# {name} {v} in: {name_some(found)}" for v, found in different.items()]
    return "\n".join([*lines, ""])


def _make_readme(name: str, runs: Sequence[Run], versus: Sequence[tuple[str, str]]) -> str:
    options: list[object] = ["--metrics", "all", "--slices"]
    for pair in versus:
        options += ["--versus", *pair]
    options += ["--power", POWER_WIDTH] if versus else []
    places = {str(run.record.get("directory") or "") for run in runs}
    places |= {str((run.config.get("data") or {}).get("root") or "") for run in runs}
    machines = (run.record.get("machine") for run in runs)
    places |= {str(found.get("host") or "") for found in machines if isinstance(found, dict)}
    torch = {run.provenance.versions.get("torch", "").partition("+")[2] for run in runs} - {""}
    index = "https://download.pytorch.org/whl/"  # of builds of torch that are not on PyPI
    indices = [f" --extra-index-url {index}{name}" for name in sorted(torch) if name.isalnum()]
    values = {
        "name": code_span(to_text(name)),
        "version": __version__,
        "n_runs": len(runs),
        "index": "".join(indices),
        "compare": quote_for_shell("seglab", "compare", "runs", *options, "--out", "again"),
        "places": ", ".join(code_span(to_text(place)) for place in sorted(places - {""})),
        "code": "\n".join(_describe_code(runs)),
        "commands": "\n".join(_list_commands(runs)),
    }
    return Template(Path(__file__).with_suffix(".md").read_text("utf-8")).substitute(values)


def _describe_code(runs: Sequence[Run]) -> list[str]:
    """Say how to get the code of runs: a list in Markdown."""
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in (run for run in runs if run.provenance.source):
        diff = hash_file(run.paths.code_diff) if run.paths.code_diff.exists() else ""
        groups[run.provenance.commit, run.provenance.source, diff].append(run)
    lines = []
    for (commit, source, diff), members in groups.items():
        text = f"no git commit is recorded; the SHA-256 of seglab's code is {code_span(source)}"
        if commit:
            text = code_span(f"git checkout {commit}")
        if diff:
            file = members[0].paths.code_diff.name
            place = quote_for_shell(f"runs/{members[0].label}/{file}")
            text += f", then `git apply` with {code_span(place)} of this archive"
        lines.append(f"- {text}: {name_some([code_span(run.label) for run in members])}")
    return lines


def _list_commands(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the command of each run that has begun, as run.json holds it, without the interpreter.

    The path of the script, or of `seglab`, becomes that of a checkout or an installation.
    """
    for run in runs:
        words = run.record.get("command")
        if not isinstance(words, list) or len(words) < 2:
            continue
        if words[0] == "seglab":
            yield f"# {run.label}"
            yield quote_for_shell(*map(to_text, words))
            continue
        program, *arguments = (to_text(word) for word in words[1:])
        stem, is_module = Path(program).stem, Path(program).name == "__main__.py"
        start = ["seglab"] if stem == "seglab" or is_module else ["python", program]
        if stem == "train":
            start = ["python", "scripts/train.py"]
        yield f"# {run.label}"
        yield quote_for_shell(*start, *arguments)


def _zip(folder: Path, file: Path) -> None:
    """Write all files of a folder, and their SHA-256, to an archive with the folder in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    sums_file = folder / "SHA256SUMS"
    write_atomic(sums_file, "".join(sums))
    with zipfile.ZipFile(file, "w") as archive:
        for path in [*files, sums_file]:
            info = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), _ZIP_TIME)
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
