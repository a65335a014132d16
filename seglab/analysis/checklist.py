"""Fills in a reporting checklist from the records of runs, and lists what these do not hold.

The questions follow published checklists (`SOURCES`). An answer is a sentence about what run
directories record; what they leave open is a sentence under 'Unknown'.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from seglab.analysis.checklist_results import (
    by_row,
    describe_failures,
    describe_intervals,
    describe_metrics,
    describe_results,
    describe_scored_elsewhere,
    describe_separation,
    list_values,
)
from seglab.analysis.grouping import make_rows
from seglab.analysis.model_card import code_span
from seglab.analysis.notes import describe_protocol
from seglab.analysis.paired import find_pairs
from seglab.analysis.rows import Row
from seglab.core.errors import name_some, printable
from seglab.core.files import read_json
from seglab.data.cases import UNKNOWN_DIAGNOSIS
from seglab.runs.paths import RunPaths, refuse_damaged
from seglab.runs.records import Run

SOURCES = (
    "CLAIM: Tejani et al., Checklist for Artificial Intelligence in Medical Imaging, 2024 update, "
    "Radiology: Artificial Intelligence 6(4):e240300, doi:10.1148/ryai.240300",
    "Metrics Reloaded: Maier-Hein, Reinke et al., Nature Methods 21:195-212, 2024, "
    "doi:10.1038/s41592-023-02151-z",
    "Christodoulou et al., Confidence intervals uncovered: Are we ready for real-world medical "
    "imaging AI?, 2024, arXiv:2409.17763",
)
NOT_RECORDED = (
    "who drew the masks, with which tool, and how well several readers agree",
    "where, when and with which cameras the images were taken, and of whom (age, sex, skin type)",
    "how cases were included or left out before seglab read them, and why there are so many",
    "how the settings in `config.yaml` were found, how often these test cases were scored before, "
    "and whether their scores had a part in any choice",
    "which method proposed the settings of a sweep, if one did (grid, random or TPE search)",
    "scores on any data but the sets above; for these the values may be far lower",
    "ethics approval, consent, and the terms of the data",
    "energy that training took; use of the networks in practice",
)
NO_PATIENTS = (
    "of which patient a case is. Where a table of the data names patients, all their cases were "
    "kept in one subset, but the runs do not record whether one does. If none does, cases of one "
    "patient may be on both sides of a split"
)


def make_checklist(runs: Sequence[Run], versus: Sequence[tuple[str, str]] = ()) -> str:
    """Fill in the checklist in Markdown.

    Args:
        runs: All that `find_runs` found, at least one of them finished.
        versus: Pairs of rows that were tested, as in `compare`.
    """
    every_row, notes = make_rows(runs)
    rows = [row for row in every_row if row.runs]
    scored = [row for row in rows if row.finished_runs]
    tested = [run for run in runs if run.is_scored]
    networks = [row for row in scored if row.was_trained]
    finished = [run for run in tested if run.was_trained]
    n_tests = len(find_pairs(versus, every_row))
    sections = {
        "What was tested": _describe_tested(scored, tested),
        "How test cases were kept apart": describe_separation(networks, tested),
        "Scored without a training here": describe_scored_elsewhere(
            [row for row in scored if not row.was_trained]
        ),
        "How epoch, threshold and settings were chosen": _describe_choices(rows, networks, runs),
        "Metrics, resolution and means": describe_metrics(scored),
        "Intervals and tests": describe_intervals(scored, n_tests),
        "Results": describe_results(every_row),
        "What failed, is missing, or cannot be compared": describe_failures(rows, runs, notes),
        "Weights that training started from": by_row(networks, _describe_weights),
        "Code, hardware and cost": _describe_code(tested) + by_row(networks, _describe_costs),
        "Seeds and determinism": _describe_seeds(networks, finished) if networks else [],
        "Unknown": ["These the runs do not record; the authors can answer:"],
    }
    unknown = [NO_PATIENTS, *NOT_RECORDED, *_find_gaps(tested)]
    lines = [
        "# Reporting checklist",
        "",
        "Filled in by seglab from the run directories in `runs/`. It says what these record, and "
        "lists under [Unknown](#unknown) what they do not. The questions are those of the "
        "following sources as far as they are about the experiment; none of these is covered "
        "completely.",
        "",
        *(f"- {source}" for source in SOURCES),
    ]
    for heading, sentences in (section for section in sections.items() if section[1]):
        lines += ["", f"## {heading}", "", "\n\n".join(sentences)]
    return "\n".join([*lines, "", *(f"- {text}" for text in unknown), ""])


def _describe_tested(scored: Sequence[Row], tested: Sequence[Run]) -> list[str]:
    def describe(row: Row) -> str:
        counts = Counter(case.diagnosis for case in row.cases)
        groups = [f"{n:,} {code_span(d) or 'unknown'}" for d, n in sorted(counts.items())]
        keys = (f"data.sets.{row.set}.root", "data.root") if row.set else ("data.root",)
        root = next((row.settings[key] for key in keys if key in row.settings), "")
        prints = list_values(run.provenance.data[:12] for run in row.finished_runs)
        name = f"{code_span(row.set)}, " if row.set else ""
        return (
            f"the data set is {name}in the folder {code_span(Path(root).name)}. Its "
            f"{row.n_cases:,} test cases by diagnosis: {', '.join(groups)}. Fingerprint of all "
            f"files that the runs read: {prints}."
        )

    sizes = {
        part: sorted({len(run.ids[part]) for run in tested if run.ids["train"] or part == "test"})
        for part in ("train", "val", "test")
    }
    ranges = [
        f"{n[0]:,} to {n[-1]:,} {p}" if len(n) > 1 else f"{n[0]:,} {p}"
        for p, n in sizes.items()
        if n
    ]
    classes = [", ".join(map(code_span, run.classes)) for run in tested]
    return [
        f"Protocol: {describe_protocol(scored)}.",
        *by_row(scored, describe),
        f"Cases in a single run: {', '.join(ranges)}.",
        f"Classes: {'; '.join(dict.fromkeys(classes))}. With one class, all other pixels are "
        "background.",
        "Each test case has diagnosis and scores in `test_cases.csv` of its run, and attributes, "
        "as far as they are known, in `case_attributes.csv`; `tables/slices.*` has the scores by "
        "attribute.",
    ]


def _describe_choices(
    rows: Sequence[Row], networks: Sequence[Row], runs: Sequence[Run]
) -> list[str]:
    if not networks:
        return []
    overrides = sorted({str(key) for run in runs for key in run.record.get("varies") or {}})
    sentences = [*by_row(networks, _describe_epoch), *by_row(networks, _describe_threshold)]
    if overrides:
        sentences.append(f"The sweep varied {list_values(overrides)}.")
    n_stopped = sum(run.status == "pruned" for run in runs)
    if n_stopped:
        sentences.append(f"Runs that a search stopped early, by their val values: {n_stopped}.")
    settings = [
        *{frozenset(row.settings.items()): row.settings for row in rows if row.was_trained}.values()
    ]
    if len(settings) == 1:
        sentences.append(
            "All runs here have the same settings but for seed and fold, so none was chosen among "
            "them."
        )
        return sentences
    keys = sorted({key for own in settings for key in own})
    differing = [key for key in keys if len({own.get(key) for own in settings}) > 1]
    sentences.append(
        f"Runs of {len(settings)} settings are here, which differ in "
        f"{name_some([*map(code_span, differing)], 20)}. If one is called the best because of its "
        f"test value, that value is too high on average, as the highest of {len(settings)}. `val` "
        "in `tables/table.*` is there to choose by, where val has cases."
    )
    return sentences


def _describe_epoch(row: Row) -> str:
    """Say which epoch's weights were kept, and on how many cases of val."""
    monitor = row.settings.get("monitor", "null")
    n_val = sorted({len(run.ids["val"]) for run in row.finished_runs})
    sizes = " to ".join(f"{n:,}" for n in dict.fromkeys((n_val[0], n_val[-1])))
    epochs = list_values(run.best_epoch for run in row.finished_runs)
    if monitor == "null":
        text = f"nothing was monitored: the weights are those of the last epoch ({epochs})"
    else:
        end = "lowest" if row.settings.get("monitor_mode") == "min" else "highest"
        text = f"the weights are those of the epoch with the {end} {code_span(monitor)} ({epochs})"
    held_out = f"each run held out {sizes} cases as val"
    if not n_val[-1]:
        held_out = "no cases were held out as val, so no run chose anything on held-out cases"
    return f"{text}; {held_out}."


def _describe_threshold(row: Row) -> str:
    """Say how probabilities become masks."""
    settings = {k: v for k, v in row.settings.items() if k.startswith("inference.")}
    is_tuned = settings.pop("inference.tune_threshold", "false") == "true"
    thresholds = list_values(f"{run.threshold:g}" for run in row.finished_runs)
    if row.classes:
        text = "a pixel has the class of the highest probability"
    elif is_tuned:
        text = f"a pixel is lesion above a probability that was tuned on val ({thresholds})"
    else:
        text = f"a pixel is lesion above a probability that the config fixes ({thresholds})"
    return f"{text}; prediction with {list_values(f'{k}={v}' for k, v in settings.items())}."


def _describe_weights(row: Row) -> str:
    names = ("model.weights", "model.encoder_weights")
    named = [(k, row.settings[k]) for k in names if row.settings.get(k, "null") != "null"]
    texts = []
    for key, value in named:
        hashes = list_values(run.provenance.weights or "not recorded" for run in row.finished_runs)
        texts.append(
            f"the config names pretrained weights, {code_span(f'{key}={value}')} (SHA-256 of the "
            f"file: {hashes}); on which images they were trained, the runs do not record"
        )
    starts = {run.provenance.init.get("trained_on", "") for run in row.finished_runs} - {""}
    if starts:
        text = f"training started from weights of other runs ({code_span(row.settings['init'])})"
        if "unknown" in starts:
            text += ", which were trained on unknown cases: test cases may be among them"
        else:
            text += "; seglab refuses these if they were trained on a case of val or test"
        texts.append(text)
    return f"{'; '.join(texts) or 'the config names no pretrained weights'}."


def _describe_code(tested: Sequence[Run]) -> list[str]:
    states: dict[str, list[str]] = defaultdict(list)
    for run in tested:
        found = run.provenance
        commit = f"commit {code_span(found.commit)}" if found.commit else "commit not recorded"
        changed = "no uncommitted changes" if found.dirty is False else "changes not recorded"
        if found.dirty:
            changed = "with uncommitted changes, in `code.diff`"
        names = ("seglab", "torch", "python")
        texts = [code_span(f"{name} {found.versions.get(name, '?')}") for name in names]
        texts += [commit, changed, f"SHA-256 of seglab's code {code_span(found.source)}"]
        where = f"{found.device or 'device not recorded'}: {found.machine or 'not recorded'}"
        work = "trained" if run.was_trained else "scored"
        states[f"{', '.join(texts)}; {work} on {code_span(where)}"].append(run.label)
    lines = [f"- {text}: {name_some([*map(code_span, found)])}" for text, found in states.items()]
    return ["\n".join(lines), "All versions: `environment.txt`."]


def _describe_costs(row: Row) -> str:
    runs, costs = row.finished_runs, row.costs()
    hours = sum(run.costs["training_seconds"] for run in runs) / 3600
    return (
        f"{costs['parameters']:,.0f} parameters; {costs['multiply_adds'] * 1e-9:.3g} G "
        f"multiply-adds for one pass of one image; training steps of finished runs "
        f"(n {len(runs)}) took {hours:.2g} hours in all, at {costs['images_per_second']:.3g} "
        "images a second. Runs that are not here are not counted."
    )


def _describe_seeds(scored: Sequence[Row], finished: Sequence[Run]) -> list[str]:
    def describe(row: Row) -> str:
        seeds = list_values(run.seed for run in row.finished_runs)
        split = code_span(row.settings.get("data.split.seed", "?"))
        value = row.settings.get("trainer.deterministic", "null")
        text = f"seeds of training: {seeds}; seed of the split: {split}; "
        text += code_span(f"trainer.deterministic={value}")
        if value == "true":
            return (
                f"{text}: the same command on the same machine with the same versions is meant to "
                "give the same bits, which `seglab reproduce RUN` checks."
            )
        return f"{text}: training again may give other values."

    resumed = [code_span(run.label) for run in finished if run.record.get("resumed")]
    again = [
        f"{code_span(run.label)} ({code_span(verdict)})"
        for run in finished
        for verdict in _read_verdicts(run)
    ]
    return [
        *by_row(scored, describe),
        f"Runs that were interrupted and continued: {name_some(resumed) or 'none'}.",
        "Runs that `seglab reproduce` trained again, and its verdicts: "
        f"{name_some(again) or 'none'}.",
    ]


def _read_verdicts(run: Run) -> list[str]:
    verdicts = []
    for folder in sorted(run.paths.reproductions.glob("*")):
        if RunPaths(folder).reproduction.exists():
            with refuse_damaged(RunPaths(folder).reproduction) as file:
                verdicts.append(printable(str(read_json(file)["verdict"]), 100))
    return verdicts


def _find_gaps(finished: Sequence[Run]) -> list[str]:
    """List what some runs do not record though others may."""
    checks: dict[str, Callable[[Run], object]] = {
        "the commit of the code": lambda run: run.provenance.commit,
        "the versions of libraries": lambda run: run.provenance.versions,
        "the machine": lambda run: run.provenance.machine,
        "the diagnosis of some test cases": lambda run: all(
            case.diagnosis not in ("", UNKNOWN_DIAGNOSIS) for case in run.tested
        ),
    }
    gaps = []
    for what, is_known in checks.items():
        labels = [code_span(run.label) for run in finished if not is_known(run)]
        if labels:
            gaps.append(f"{what}, in {name_some(labels)}")
    return gaps
