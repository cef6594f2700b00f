"""Run a protocol: every method on every case with every seed, each once, what is done kept."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from benchmarks.accuracy import baselines
from benchmarks.accuracy.cases import DATA_SETS, Case, spaced
from benchmarks.accuracy.variants import MapScores
from benchmarks.timing import machine
from skmkd import MemKDDetector, MKDDetector
from skmkd.metrics import aupro_score, pixel_average_precision_score, pixel_roc_auc_score

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
ESTIMATORS["MapScores"] = MapScores


def read_protocol(name: str, quick: bool) -> dict[str, Any]:
    """Read a protocol; its table "quick" replaces entries where it is to be quick."""
    protocol = tomllib.loads((PROTOCOLS / f"{name}.toml").read_text())
    shorter = protocol.pop("quick", {})
    return {"epochs": [], "seeds": [0], "settings": {}, **protocol, **(shorter if quick else {})}


def run(name: str, data: Path | None, results: Path, quick: bool) -> Path:
    """Run what is not yet in the results of a protocol; return their file."""
    protocol = read_protocol(name, quick)
    data_set = DATA_SETS[protocol["data"]]
    file = results / f"{name}.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    plan = [
        {"case": case, "method": method, "seed": seed, "settings": settings_of(protocol, method)}
        for seed in protocol["seeds"]  # outermost: an interrupted protocol has whole seeds
        for case in protocol.get("cases") or data_set.names(data)
        for method in protocol["methods"]
    ]
    done = [{key: one[key] for key in plan[0]} for one in runs]
    left = [one for one in plan if one not in done]
    runs = [one for one, key in zip(runs, done, strict=True) if key in plan]  # of older settings
    read: tuple[Any, Case | None] = None, None
    for one in tqdm(left, name, unit="run"):
        if read[0] != (one["case"], one["seed"]):
            read = (one["case"], one["seed"]), data_set.read(one["case"], data, one["seed"])
        records = list(follow(one, thinned(read[1], protocol.get("limit"))))
        made = {"machine": machine(), "day": time.strftime("%Y-%m-%d")}
        runs.append({**one, **made, "records": records})
        write(file, {"protocol": name, "title": protocol["title"], "runs": runs})
    return file


def settings_of(protocol: dict[str, Any], method: str) -> dict[str, Any]:
    """Return what a method is made of: its estimator, parameters, and views of it when fitted.

    TOML has no word for None; "none" stands for it.
    """
    given = protocol["settings"] | protocol["methods"][method]
    estimator = given.pop("estimator", "MKDDetector")
    views = given.pop("views", {})
    parameters = {name: None if value == "none" else value for name, value in given.items()}
    return {
        "estimator": estimator,
        "parameters": parameters,
        "views": views,
        "epochs": protocol["epochs"] if estimator in FOLLOWED else [],
    }


def thinned(case: Case, limit: int | None) -> Case:
    """Keep some images of each kind, evenly spaced."""
    if limit is None:
        return case
    kept = [np.flatnonzero(case.y == kind) for kind in (1, -1)]
    kept = np.concatenate([spaced(indices, limit) for indices in kept])
    masks = None if case.masks is None else [case.masks[i] for i in kept]
    learn = [case.learn[i] for i in spaced(np.arange(len(case.learn)), limit)]
    return Case(learn, [case.test[i] for i in kept], case.y[kept], masks)


def follow(one: dict[str, Any], case: Case) -> Iterator[dict[str, Any]]:
    """Fit, and yield a record for each view, at the end or after each of some epochs.

    The seconds of a fit leave out the looks that are taken at it on the way.
    """
    settings, epochs = one["settings"], one["settings"]["epochs"]
    model = ESTIMATORS[settings["estimator"]](random_state=one["seed"], **settings["parameters"])
    views = settings["views"] or {"": {}}
    records: list[dict[str, Any]] = []
    start = time.perf_counter()

    def look(fitted: Any, epoch: int) -> None:
        nonlocal start
        if epoch in epochs:
            stop = time.perf_counter()
            for view, parameters in views.items():
                found = judge(seen_as(fitted, parameters), case)
                records.append({"view": view, "epoch": epoch, "fit s": stop - start, **found})
            start += time.perf_counter() - stop

    if epochs:
        model.set_params(max_iter=max(epochs), tol=None).fit(case.learn, callback=look)
    else:
        epochs = [0]
        look(model.fit(case.learn), 0)
    yield from records


def seen_as(fitted: Any, parameters: dict[str, Any]) -> Any:
    """Return a fitted detector with other parameters of its scores and maps."""
    if not parameters:
        return fitted
    seen = object.__new__(type(fitted))
    seen.__dict__ = dict(vars(fitted))
    seen.set_params(**parameters)
    if "score_layers" in parameters:
        seen.score_layers_ = seen._choose_score_layers()
    return seen


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
