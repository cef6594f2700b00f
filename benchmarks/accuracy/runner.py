"""Run a protocol: every method on every case with every seed, each once, what is done kept."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from benchmarks.accuracy import baselines, peers
from benchmarks.accuracy.cases import DATA_SETS, Case, DataSet, spaced
from benchmarks.accuracy.variants import BothSources, MapScores
from benchmarks.timing import machine
from skmkd import MemKDDetector, MKDDetector
from skmkd._mkd import PAPER
from skmkd.metrics import aupro_score, pixel_average_precision_score, pixel_roc_auc_score

IRRELEVANT = (
    "random_state", "feature_store", "memory", "device", "engine", "max_pixels",
    "validation_fraction",
)  # fmt: skip
KEYS = ("case", "method", "seed", "settings")  # of what a run is
FOLDER = Path(__file__).parent
PROTOCOLS, RESULTS = FOLDER / "protocols", FOLDER / "results"
ESTIMATORS: dict[str, Any] = {
    "MKDDetector": MKDDetector,
    "MemKDDetector": MemKDDetector,
}
FOLLOWED = tuple(ESTIMATORS)  # from epoch to epoch
ESTIMATORS |= {
    name: getattr(baselines, name)
    for name in ("PatchNeighbours", "PositionGaussians", "PooledForest", "PooledSVM")
}
ESTIMATORS |= {name: getattr(peers, name) for name in ("AnomalibPatchCore", "AnomalibPaDiM")}
ESTIMATORS |= {"BothSources": BothSources, "MapScores": MapScores}

LOSS = (
    "value_weight", "direction_weight", "direction", "image_score", "localization", "layer_weights",
)  # fmt: skip
WHOLE_LAYERS = {name: PAPER[name] for name in LOSS}
DEFAULT = {name: MKDDetector().get_params()[name] for name in WHOLE_LAYERS}
LIKE: dict[str, dict[str, Any]] = {  # parameters of MKDDetector that a protocol names by one word
    "default": DEFAULT,
    "alike": DEFAULT | {"layer_weights": None},
    "paper": PAPER,
    "authors": PAPER | {"direction_weight": 1.0, "score_layers": 3},
    "total": WHOLE_LAYERS | {"localization": "discrepancy"},
}


def read_protocol(name: str, quick: bool) -> dict[str, Any]:
    """Read a protocol.

    Its entries replace those of the protocol that "base" names, if any, and where it is to be
    quick, those in its table "quick" replace them.
    """
    protocol = tomllib.loads((PROTOCOLS / f"{name}.toml").read_text())
    if "base" in protocol:
        base = (PROTOCOLS / f"{protocol.pop('base')}.toml").read_text()
        protocol = tomllib.loads(base) | protocol
    shorter = protocol.pop("quick", {})
    return {"epochs": [], "seeds": [0], "settings": {}, **protocol, **(shorter if quick else {})}


def run(name: str, data: Path | None, results: Path, quick: bool, jobs: int = 1) -> Path:
    """Run what is not yet in the results of a protocol; return their file.

    Results of methods that are made of something else now, or no longer there, are dropped. Quick
    ones have a file of their own. Side by side, runs share the processor's cores.
    """
    protocol = read_protocol(name, quick)
    data_set = DATA_SETS[protocol["data"]]
    file = results / f"{name}{'_quick' if quick else ''}.json"
    runs = runs_in(file)
    settings = {method: settings_of(protocol, method) for method in protocol["methods"]}
    plan = [
        {"case": case, "method": method, "seed": seed, "settings": settings[method]}
        for seed in protocol["seeds"]  # outermost: an interrupted protocol has whole seeds
        for case in protocol.get("cases") or data_set.names(data)
        for method in settings
    ]
    runs = [one for one in runs if settings.get(one["method"]) == one["settings"]]
    done = [{key: one[key] for key in KEYS} for one in runs]
    left = [one for one in plan if one not in done]
    write(file, {"protocol": name, "runs": runs})
    made = Parallel(jobs, return_as="generator")(
        delayed(carry_out)(one, case) for one, case in with_cases(left, data_set, data)
    )
    for one in tqdm(made, name, total=len(left), unit="run"):
        runs.append(one)
        write(file, {"protocol": name, "runs": runs})
    return file


def runs_in(file: Path) -> list[dict[str, Any]]:
    """Return the runs in a file of results, if it is there."""
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    for one in runs:
        one["settings"]["parameters"] = without_irrelevant(one["settings"]["parameters"])
    return runs


def without_irrelevant(parameters: dict[str, Any]) -> dict[str, Any]:
    """Leave out what changes figures by rounding at most, and the random state: it is the seed."""
    return {name: value for name, value in parameters.items() if name not in IRRELEVANT}


def with_cases(
    plan: list[dict[str, Any]], data_set: DataSet, data: Path | None
) -> Iterator[tuple[dict[str, Any], Case]]:
    """Give every run its case; runs of the same one follow each other, and it is read once."""
    for (case, seed), group in groupby(plan, key=itemgetter("case", "seed")):
        read = data_set.read(case, data, seed)
        for one in group:
            yield one, thinned(read, one["settings"]["limit"])


def carry_out(one: dict[str, Any], case: Case) -> dict[str, Any]:
    """Return a run with what it found, where and when."""
    made = {"machine": machine(), "day": time.strftime("%Y-%m-%d")}
    return {**one, **made, "records": follow(one, case)}


def settings_of(protocol: dict[str, Any], method: str) -> dict[str, Any]:
    """Return all that a method's figures depend on but the case and the seed.

    That is its estimator, all parameters of it but `IRRELEVANT`, views of it when fitted, the
    epochs to look at it, and how many images of a kind there are. The entry "like" stands for the
    parameters of that name. TOML has no word for None; "none" stands for it.
    """
    given = protocol["settings"] | protocol["methods"][method]
    if "like" in given:
        given = LIKE[given.pop("like")] | given
    estimator = given.pop("estimator", "MKDDetector")
    views = given.pop("views", {})
    epochs = given.pop("epochs", protocol["epochs"]) if estimator in FOLLOWED else []
    if epochs:
        given |= {"max_iter": epochs[-1], "tol": "none"}
    if estimator in FOLLOWED:
        given = {"contamination": 0.05} | given  # learn from all images; no threshold is looked at
    parameters = {name: None if value == "none" else value for name, value in given.items()}
    whole = without_irrelevant(ESTIMATORS[estimator](**parameters).get_params())
    settings = {"estimator": estimator, "parameters": whole, "views": views, "epochs": epochs}
    return json.loads(json.dumps({**settings, "limit": protocol.get("limit")}))


def thinned(case: Case, limit: int | None) -> Case:
    """Keep some images of each kind, evenly spaced."""
    if limit is None:
        return case
    kept = [np.flatnonzero(case.y == kind) for kind in (1, -1)]
    kept = np.concatenate([spaced(indices, limit) for indices in kept])
    masks = None if case.masks is None else [case.masks[i] for i in kept]
    learn = [case.learn[i] for i in spaced(np.arange(len(case.learn)), limit)]
    return Case(learn, [case.test[i] for i in kept], case.y[kept], masks)


def follow(one: dict[str, Any], case: Case) -> list[dict[str, Any]]:
    """Fit, and return a record for each view, at the end and after each of some epochs before.

    The seconds of a fit leave out the looks that are taken at it on the way.
    """
    settings = one["settings"]
    epochs = settings["epochs"]
    model = ESTIMATORS[settings["estimator"]](**settings["parameters"], random_state=one["seed"])
    views = settings["views"] or {"": {}}
    records: list[dict[str, Any]] = []
    looking, start = 0.0, time.perf_counter()

    def look(fitted: Any, epoch: int) -> None:
        nonlocal looking
        stop = time.perf_counter()
        length = {"epochs run": fitted.n_iter_} if hasattr(fitted, "n_iter_") else {}
        for view, parameters in views.items():
            found = {"fit s": stop - start - looking, **judge(seen_as(fitted, parameters), case)}
            records.append({"view": view, "epoch": epoch, **length, **found})
        looking += time.perf_counter() - stop

    def look_early(fitted: Any, epoch: int) -> None:
        if epoch in earlier:
            look(fitted, epoch)

    *earlier, last = epochs or [0]
    if earlier:
        model.fit(case.learn, callback=look_early)
    else:  # a callback costs each epoch an update of batch norms
        model.fit(case.learn)
    look(model, last)
    return records


def seen_as(fitted: Any, parameters: dict[str, Any]) -> Any:
    """Return a fitted detector with other parameters of its scores and maps."""
    if not parameters:
        return fitted
    seen = object.__new__(type(fitted))
    seen.__dict__ = dict(vars(fitted))
    return seen.set_params(**parameters)


def judge(fitted: Any, case: Case) -> dict[str, float]:
    """Return areas under curves in percent, and the seconds that the scores took."""
    start = time.perf_counter()
    scores = fitted.score_samples(case.test)
    found = {"score s": time.perf_counter() - start}
    anomalous = case.y == -1
    figures = {
        "image AUROC": roc_auc_score(anomalous, -scores),
        "image AP": average_precision_score(anomalous, -scores),
    }
    if case.masks is not None and hasattr(fitted, "localize"):
        maps = fitted.localize(case.test)
        figures["pixel AUROC"] = pixel_roc_auc_score(case.masks, maps)
        figures["pixel AP"] = pixel_average_precision_score(case.masks, maps)
        figures["AUPRO"] = aupro_score(case.masks, maps)
    return found | {name: 100 * float(value) for name, value in figures.items()}


def write(file: Path, content: dict[str, Any]) -> None:
    """Write results so that an interruption leaves the old ones or the new ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(file)
