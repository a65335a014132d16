"""Model card of a run: fills model_card.md from the run's files. Imports no torch.

The sections follow Mitchell et al., Model Cards for Model Reporting (2019); the front matter holds
what the Hugging Face Hub reads, scores included.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

import yaml

from seglab.analysis.notes import MIN_CASES_FOR_INTERVAL, NARROW_INTERVAL_CAUTION
from seglab.analysis.rows import Row, Score, format_score, make_single_row
from seglab.metrics.names import DEFAULT_METRICS, METRIC_DEFINITIONS, METRICS
from seglab.runs.allowed_targets import ALL_ALLOWED_TARGETS
from seglab.runs.records import Run, RunProvenance, read_data_files, read_run, to_text

WORST_CASES = 5
MAX_DIAGNOSES = 10
MAX_NAME_LENGTH = 200
SYNTHETIC_CASES = "seglab.data.synthetic.synthetic_cases"
PH2_LIMITS = (
    "PH2 comes from one hospital, one dermoscope at one magnification, and fair skin (phototypes "
    "II and III; Mendonça et al. 2013). Other cameras, darker skin and other diagnoses are not in "
    "it."
)
SYNTHETIC_LIMITS = "Trained and tested on synthetic images: scores say nothing about patients."
UNKNOWN_LIMITS = "The run does not record which people, places and cameras the images come from."


def make_model_card(run_dir: Path) -> str:
    """Makes the model card of a run whose test cases are scored, from its files alone.

    Args:
        run_dir: The run directory; nothing in it is trusted.

    Returns:
        Markdown with YAML front matter.

    Raises:
        InputError: It is no run directory, has no scores yet, or a file is damaged.
    """
    run = read_run(run_dir, is_scored=True)
    provenance = run.provenance
    row = make_single_row(run)
    targets = {v for k, v in run.settings.items() if k.split(".")[-1] == "_target_"}
    outside = sorted(targets - ALL_ALLOWED_TARGETS)
    n = len(run.tested)
    values = {
        "front_matter": _front_matter(run, provenance),
        "network": code_span(_class_name(run, "model")),
        "dataset": code_span(_dataset(run)),
        "targets": _join(map(code_span, run.classes[len(run.classes) > 1 :])),
        "n_test": f"{n:,} test case{'s' * (n != 1)}",
        "seed": code_span(run.seed),
        "run_shell": shlex.quote(run.path),
        "run_python": json.dumps(run.path, ensure_ascii=False),
        "trust_options": "".join(f" --trust {shlex.quote(name)}" for name in outside),
        "trust_argument": f", trust={tuple(outside)!r}" if outside else "",
        "model_table": _fact_table(_model_facts(run, provenance)),
        "data_table": _fact_table(_data_facts(run, provenance)),
        "training_table": _fact_table(_training_facts(run, provenance)),
        "provenance_table": _fact_table(_provenance_facts(run, provenance)),
        "data_limits": _data_limits(run, provenance),
    }
    values |= _evaluation(run, provenance, row)
    return Template(Path(__file__).with_suffix(".md").read_text("utf-8")).substitute(values)


def _front_matter(run: Run, provenance: RunProvenance) -> str:
    """YAML in the format of the Hugging Face Hub's model cards."""
    is_synthetic = run.settings.get("data.cases._target_") == SYNTHETIC_CASES
    license = {"license": "other", "license_name": "terms-of-the-training-data"}
    if is_synthetic and not provenance.weights:
        license = {"license": "mit"}
    dataset = _dataset(run) or "unknown"
    result = {
        "task": {"type": "image-segmentation"},
        "dataset": {
            "type": re.sub(r"\W+", "-", dataset.lower()),
            "name": dataset,
            "split": "test",
            "args": {"cases": len(run.tested), "resolution": "native", "split": _split(run)},
        },
        "metrics": [
            {"type": name, "name": name, "value": run.values[f"test/{name}"]} for name in METRICS
        ],
    }
    front_matter = license | {
        "library_name": "seglab",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "pytorch"]
        + ["dermoscopy"] * _is_ph2(run, provenance)
        + ["synthetic-data"] * is_synthetic,
        "metrics": ["dice", "iou", "accuracy"],
        "model-index": [{"name": f"{_class_name(run, 'model')} on {dataset}", "results": [result]}],
    }
    return yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True).rstrip()


def _model_facts(run: Run, provenance: RunProvenance) -> dict[str, str]:
    mask = "class of the highest probability"
    if len(run.classes) == 1:
        mask = f"probability above {run.threshold:g}"
    return {
        "network": _constructor(run, "model"),
        "size": f"{run.costs['parameters']:,.0f} parameters, "
        f"{run.costs['multiply_adds'] * 1e-9:.3g} G multiply-adds per pass",
        "pretrained weights": provenance.weights and f"SHA-256 {code_span(provenance.weights)}",
        "input": f"RGB image, resized to a square of {code_span(run.settings['data.size'])} pixels",
        "output": f"probability of {_join(map(code_span, run.classes))} for each pixel, and a mask",
        "mask": mask,
        "inference": code_span(_arguments(run, "inference")),
    }


def _data_facts(run: Run, provenance: RunProvenance) -> dict[str, str]:
    diagnoses = [f"{n} {code_span(name)}" for name, n in _diagnoses(run).items()]
    patients = "not named in the data: one may have images in several parts"
    files = (Path(to_text(name)).name for name in read_data_files(run.folder))
    tables = sorted({name for name in files if name.lower().endswith(".csv")})
    if tables:
        names = _join(map(code_span, tables))
        patients = f"all images in one part, as far as {names} names patients"
    return {
        "data set": f"{code_span(_dataset(run))}, read by {_constructor(run, 'data.cases')}",
        "cases": ", ".join(f"{len(ids):,} {part}" for part, ids in run.ids.items()),
        "test cases by diagnosis": ", ".join(diagnoses),
        "split": code_span(_split(run)),
        "patients": patients,
        "SHA-256 of the data": code_span(provenance.data),
        "SHA-256 of the split": code_span(provenance.split_hash),
    }


def _training_facts(run: Run, provenance: RunProvenance) -> dict[str, str]:
    callbacks = [key for key in run.settings if re.fullmatch(r"callbacks\.[^.]+\._target_", key)]
    monitor = run.settings.get("monitor", "null")
    epoch = f"{run.best_epoch}, the last: nothing was monitored"
    if monitor != "null":
        mode = code_span(run.settings.get("monitor_mode", ""))
        epoch = f"{run.best_epoch}, chosen by {code_span(monitor)} ({mode})"
    settings = [f"{key}={run.settings.get(key)}" for key in ("data.batch_size",)]
    return {
        "loss": _constructor(run, "task.loss"),
        "optimizer": _constructor(run, "task.optimizer"),
        "learning rate schedule": _constructor(run, "task.lr_scheduler") or "constant",
        "augmentation": _constructor(run, "data.augment") or "none",
        "trainer": _constructor(run, "trainer"),
        "callbacks": ", ".join(_constructor(run, key[: -len("._target_")]) for key in callbacks),
        "more": code_span(", ".join(settings)),
        "epoch of the weights": epoch,
    }


def _provenance_facts(run: Run, provenance: RunProvenance) -> dict[str, str]:
    versions = [f"{k} {provenance.versions[k]}" for k in ("seglab", "torch", "lightning", "python")]
    resumed = ""
    if provenance.resumed:
        changed = _join(provenance.changed) if provenance.changed else "nothing"
        resumed = f"{provenance.resumed} times; changed in between: {changed}"
    return {
        "experiment": code_span(run.settings.get("name", "")),
        "versions": code_span(", ".join(versions)),
        "commit": provenance.commit
        and code_span(provenance.commit) + ", with uncommitted changes" * bool(provenance.dirty),
        "SHA-256 of the source": code_span(provenance.source),
        "trained": f"{code_span(provenance.started[:10])}, "
        f"{run.costs['training_seconds']:,.0f} s of training steps",
        "device": code_span(f"{provenance.device}: {provenance.machine}"),
        "resumed": resumed,
    }


def _data_limits(run: Run, provenance: RunProvenance) -> str:
    if run.settings.get("data.cases._target_") == SYNTHETIC_CASES:
        return SYNTHETIC_LIMITS
    return PH2_LIMITS if _is_ph2(run, provenance) else UNKNOWN_LIMITS


def _evaluation(run: Run, provenance: RunProvenance, row: Row) -> dict[str, str]:
    """Values of the placeholders that hold scores."""
    metric, scores, diagnoses = "dice_per_image", row.scores(METRICS), _diagnoses(run)
    is_narrow = min([len(run.tested), *diagnoses.values()]) < MIN_CASES_FOR_INTERVAL
    best = max(run.baselines, key=lambda name: run.baselines[name][metric])
    by_class = {name: row.scores(METRICS, class_name=name) for name in row.classes[1:]}
    by_diagnosis = {
        f"{name or 'unknown'} ({n})": row.scores(METRICS, name)
        for name, n in [*diagnoses.items()][: MAX_DIAGNOSES * (len(diagnoses) > 1)]
    }
    note = "Values are means over the classes but background, each against the rest. "
    return {
        "dice": format_score(metric, scores[metric]),
        "best_baseline": code_span(best),
        "best_baseline_dice": f"{run.baselines[best][metric]:.3f}",
        "caution": f"\n**Caution:** {NARROW_INTERVAL_CAUTION}.\n" * is_narrow,
        "metrics_table": _metrics_table(scores, run.baselines),
        "classes_note": note * bool(row.classes),
        "class_table": _group_table("class", by_class),
        "diagnosis_table": _group_table("diagnosis (n)", by_diagnosis),
    } | _dice_of_cases(row)


def _metrics_table(
    scores: Mapping[str, Score], baselines: Mapping[str, Mapping[str, float]]
) -> str:
    head = ["metric", "this network", *map(code_span, baselines), "definition"]
    rows = [
        [
            code_span(name),
            format_score(name, scores[name]),
            *(format_score(name, Score(values[name])) for values in baselines.values()),
            METRIC_DEFINITIONS[name],
        ]
        for name in METRICS
    ]
    return _table(head, rows)


def _group_table(kind: str, groups: Mapping[str, Mapping[str, Score]]) -> str:
    rows = [
        [code_span(name), *(format_score(metric, scores[metric]) for metric in DEFAULT_METRICS)]
        for name, scores in groups.items()
    ]
    return f"\n{_table([kind, *DEFAULT_METRICS], rows)}\n" if rows else ""


def _dice_of_cases(row: Row) -> dict[str, str]:
    dice = row.by_case("dice_per_image")
    worst = sorted((value, case) for case, value in dice.items())[:WORST_CASES]
    return {
        "median_dice": f"{statistics.median(dice.values()):.3f}",
        "n_below": str(sum(value < 0.8 for value in dice.values())),
        "worst": ", ".join(f"{code_span(id)} {value:.3f}" for value, (id, *_) in worst),
    }


def _diagnoses(run: Run) -> dict[str, int]:
    """Number of test cases of each diagnosis, most frequent first; empty where none is known."""
    counts = Counter(diagnosis for _, _, diagnosis in run.tested)
    return {} if {*counts} <= {"unknown", ""} else dict(counts.most_common())


def _is_ph2(run: Run, provenance: RunProvenance) -> bool:
    """Whether the data is PH2, and not other images in PH2's layout."""
    ids = [id for part in run.ids.values() for id in part]
    layout = run.settings.get("data.cases.layout")
    return layout == "ph2" and all(re.fullmatch(r"IMD\d{3}", id) for id in ids)


def _split(run: Run) -> str:
    file = run.settings.get("data.split.file", "null")
    if file != "null":
        return Path(file).name
    part = f"fold {run.fold} of {run.folds} (from 0)" if run.fold else "holdout"
    return f"{part}, stratified by diagnosis, split seed {run.settings.get('data.split.seed')}"


def _dataset(run: Run) -> str:
    return Path(run.settings.get("data.root", "")).name


def _class_name(run: Run, key: str) -> str:
    return run.settings.get(f"{key}._target_", "").rpartition(".")[2]


def _constructor(run: Run, key: str) -> str:
    """The object that a config section builds, e.g. `Adam(lr=0.001)`; empty if there is none."""
    name = _class_name(run, key)
    return code_span(f"{name}({_arguments(run, key)})") if name else ""


def _arguments(run: Run, key: str) -> str:
    """The values of a config section, without their folders where they are absolute paths."""
    arguments = {
        name.removeprefix(f"{key}."): Path(value).name if value.startswith("/") else value
        for name, value in run.settings.items()
        if name.startswith(f"{key}.") and value not in ("{}", "null")
    }
    skipped = ("_target_", "_partial_")
    return ", ".join(f"{k}={v}" for k, v in arguments.items() if k not in skipped)


def code_span(text: str) -> str:
    """Formats untrusted text as Markdown code; text that could end the code becomes entities."""
    if len(text) > MAX_NAME_LENGTH:
        text = f"{text[: MAX_NAME_LENGTH - 3]}..."
    if not text or re.fullmatch(r"[^`|\\<>&]+", text):
        return text and f"`{text}`"
    # GitHub makes a link of www. in any text.
    return re.sub(r"[^\w .+-]|_|(?<=www)\.", lambda m: f"&#{ord(m[0])};", text, flags=re.I)


def _join(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _fact_table(facts: Mapping[str, str]) -> str:
    return _table(["property", "value"], [[k, v] for k, v in facts.items() if v])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, [":--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
