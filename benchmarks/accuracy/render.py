"""Make the page of results from their JSON: ``python -m benchmarks.accuracy.render``.

Nothing on it is typed by hand but the words around the figures; a protocol's are its `note`. The
pictures are drawn anew, too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.runner import (
    FOLDER,
    FOLLOWED,
    PROTOCOLS,
    RESULTS,
    read_protocol,
    runs_in,
)

PAGE = FOLDER.parents[1] / "docs" / "results.md"
README = FOLDER.parents[1] / "README.md"
MARKS = "<!-- made by benchmarks.accuracy.render -->", "<!-- until here -->"
OURS = (
    "the default", "the default with EfficientNet-Lite0", "both sources", "the paper's setting",
)  # fmt: skip
ALIKE = "layers weighed alike"  # what methods are called that differ from the default in this
QUOTED = {
    "solar_cells": "solar cells, real defects",
    "textures": "seven photographs, synthetic defects",
    "faces": "faces against other crops",
    "digits": "digits, one normal, ten cases",
    "fashion_mnist": "Fashion-MNIST, one class normal, ten cases",
}
FIGURES = ("image AUROC", "image AP", "pixel AUROC", "pixel AP", "AUPRO")
SHOWN = ("image AUROC", "pixel AUROC", "AUPRO")
TITLE = """# Results

Every figure here comes from a file in `benchmarks/accuracy/results`, which says with which
settings, seeds and versions, on which processor and when each run was made. The command above a
table makes what is not there yet, and prints the table; with `--results FOLDER` it makes all of
it anew, in a folder of yours. `python -m benchmarks.accuracy.render` writes this page.

"The default" and "the paper's setting" are `MKDDetector()` and `MKDDetector.paper()`. "The
authors' settings" are the paper's with what their program sets for a set of images: a weight of
values, λ = 1, a number of epochs, scores from the last three layers. "Total" is the paper's loss,
of whole layers, but with normalised images and maps of discrepancies; "value" and "direction" are
its terms alone. "Both sources" is a `DetectorEnsemble` of the default with each of skmkd's
sources. "Layers weighed alike" is the default with `layer_weights=None`. Baselines stand on the
same VGG-16, at the same size of images: nearest patches on 20,000 of them that are drawn at
random, where PatchCore chooses a core set (anomalib's own PatchCore on the same source is within
half a point, see its section), and IsolationForest and OneClassSVM on the mean of each channel.
The files in `benchmarks/accuracy/protocols` say the rest.

Areas are in percent; behind ± is the standard deviation over seeds, where there are several.
AUPRO goes to a false-positive rate of 0.3. "To the end" is as long as a detector's parameters
say: with the default 300 steps (600 at 256 pixels) or ten epochs, whichever is more; with the
paper's setting until `tol` stops the training, or 200 epochs. In ablations layers weigh alike,
and those of anything but the training train all detectors alike: at a constant learning rate, in
batches of 64. Defects are synthetic where the title says so. What the methods cost is measured by
[benchmarks](benchmarks.md), in ratios.
"""


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file of results, each with its case, method and seed.

    They are in the order of the protocol's methods. Seeds that have not seen all cases yet, which
    are not "whole", are left out if their method has others.
    """
    content = json.loads(file.read_text())
    methods = list(read_protocol(content["protocol"], quick=False)["methods"])
    runs = sorted(content["runs"], key=lambda run: methods.index(run["method"]))
    rows = [
        {
            **record,
            "case": run["case"],
            "seed": run["seed"],
            "trained": run["settings"]["estimator"] in FOLLOWED,
            "method": ", ".join(filter(None, (run["method"], record["view"]))),
        }
        for run in runs
        for record in run["records"]
    ]
    n_cases = len({row["case"] for row in rows})
    for own in grouped(rows, "method", "seed").values():
        whole = len({row["case"] for row in own}) == n_cases
        for row in own:
            row["whole"] = whole
    methods = grouped(rows, "method").values()
    return [row for own in methods for row in ([r for r in own if r["whole"]] or own)]


def grouped(rows: list[dict[str, Any]], *keys: str) -> dict[tuple, list[dict[str, Any]]]:
    """Lay together the rows that share these keys."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def averaged(rows: list[dict[str, Any]], *keys: str) -> dict[tuple, dict[str, Any]]:
    """Return the mean of every figure over the rows that share these keys, and their number."""
    return {
        group: {
            name: float(np.mean([row[name] for row in members]))
            for name in FIGURES
            if all(name in row for row in members)
        }
        | {"n": len(members)}
        for group, members in grouped(rows, *keys).items()
    }


def table(file: Path) -> str:
    """Return tables in Markdown: the means of each method, and each figure in each case.

    Means are of seeds that saw all cases. Those over cases that the defaults were not chosen with
    stand apart.
    """
    name = json.loads(file.read_text())["protocol"]
    protocol, rows = read_protocol(name, quick=False), rows_of(file)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = [f"## {protocol['title']}", "", f"    python -m benchmarks.accuracy {name}", ""]
    lines += [f"Means over {len(cases)} cases:" if len(cases) > 1 else f"Of {cases[0]}:", ""]
    lines += means_table(rows)
    others = [row for row in rows if row["case"] not in protocol.get("chosen_with", cases)]
    if others:
        known = ", ".join(protocol["chosen_with"])
        lines += ["", f"The default was chosen with {known} at hand. Means over the others:", ""]
        lines += means_table(others)
    found = averaged(last_epochs(rows), "method", "case")
    for name in shown_of(rows) if len(cases) > 1 else ():
        lines += ["", f"{name[0].upper()}{name[1:]} of each case, after the last epoch:", ""]
        lines += header(["method", *cases])
        for method in dict.fromkeys(row["method"] for row in rows):
            cells = [found.get((method, case), {}).get(name) for case in cases]
            if any(cell is not None for cell in cells):
                lines.append(row_of([method, *map(text, cells)]))
    return "\n".join(lines) + "\n"


def means_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of means over cases, for each method and number of epochs."""
    trained = {row["method"] for row in rows if row["trained"]}
    shown = shown_of(rows)
    lines = header(["method", "epochs", "seeds", *shown])
    for (method, epoch), (mean, seeds) in means_of(rows).items():
        cells = [text(mean.get(name)) + spread(seeds, name) for name in shown]
        length = str(epoch or ("to the end" if method in trained else ""))
        lines.append(row_of([method, length, str(mean["n"]), *cells]))
    return lines


def means_of(
    rows: list[dict[str, Any]],
) -> dict[tuple[str, int], tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return for each method and epoch the mean over its whole seeds, and each one's.

    Without such a seed a method has no mean.
    """
    found = {}
    for key, own in grouped([row for row in rows if row["whole"]], "method", "epoch").items():
        seeds = list(averaged(own, "seed").values())
        found[key] = averaged(seeds)[()], seeds
    return found


def last_epochs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the records of each method after its last epoch."""
    last = {key: max(row["epoch"] for row in own) for key, own in grouped(rows, "method").items()}
    return [row for row in rows if row["epoch"] == last[row["method"],]]


def shown_of(rows: list[dict[str, Any]]) -> list[str]:
    """Name the figures that there are."""
    return [name for name in SHOWN if any(name in row for row in rows)]


def header(columns: list[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [row_of(columns), "|" + "---|" * len(columns)]


def row_of(cells: list[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"


def text(value: float | None) -> str:
    """Write a figure, if there is one."""
    return "" if value is None else f"{value:.2f}"


def spread(seeds: list[dict[str, Any]], name: str) -> str:
    """Write how far the mean over all cases deviates from seed to seed, if there are several."""
    means = [seed[name] for seed in seeds if name in seed]
    return f" ± {np.std(means, ddof=1):.2f}" if len(means) > 1 else ""


def quoted(results: Path) -> str:
    """Return the README's table: skmkd's own methods, and the best of the baselines."""
    own = [method.removeprefix("the ") for method in OURS]
    lines = header(["images", "figure", *own, "best baseline"])
    for name, images in QUOTED.items():
        rows = last_epochs(rows_of(results / f"{name}.json"))
        means = {method: mean for (method, _), (mean, _) in means_of(rows).items()}
        baselines = [method for method in means if not method.startswith(("the ", *OURS, ALIKE))]
        for figure in shown_of(rows):
            found = {m: f"{means[m][figure]:.1f}" for m in means if figure in means[m]}
            known = [m for m in baselines if m in found]
            best = max(known, key=lambda m: means[m][figure], default="")
            ours = [found.get(method, "") for method in OURS]
            cells = [images, figure, *ours, f"{found.get(best, '')} {best}"]
            lines.append(row_of([cell.strip() for cell in cells]))
            images = ""
    return "\n".join(lines)


def with_quotes(readme: str, results: Path) -> str:
    """Return the README with its table made anew."""
    before, rest = readme.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{quoted(results)}\n{MARKS[1]}{after}"


def page(results: Path) -> str:
    """Return the page: a section for each protocol that has results, ablations last."""
    sections = []
    for file in files_of(results):
        picture = f"![Areas under the ROC curve, a dot a case](images/results_{file.stem}.png)\n"
        note = read_protocol(file.stem, quick=False).get("note", "")
        sections.append("\n".join(filter(None, (table(file), note, picture))))
    return "\n".join([TITLE, *sections])


def files_of(results: Path) -> list[Path]:
    """Return the files of the protocols that have a run in them, ablations last."""
    names = (path.stem for path in PROTOCOLS.glob("*.toml"))
    ordered = sorted(names, key=lambda name: (name.startswith("ablation"), name))
    files = [results / f"{name}.json" for name in ordered]
    return [file for file in files if runs_in(file)]


def draw(file: Path, target: Path) -> None:
    """Draw the area of every method that the protocol is about, by default the image AUROC.

    A dot is a case, a bar the mean of a method of all cases.
    """
    from matplotlib.figure import Figure

    protocol = read_protocol(json.loads(file.read_text())["protocol"], quick=False)
    drawn, rows = protocol.get("drawn", "image AUROC"), last_epochs(rows_of(file))
    methods = list(dict.fromkeys(row["method"] for row in rows if drawn in row))[::-1]
    means = {method: mean for (method, _), (mean, _) in means_of(rows).items()}
    figure = Figure(figsize=(7, 0.9 + 0.42 * len(methods)), layout="constrained")
    ax = figure.subplots()
    found = averaged(rows, "method", "case")
    for place, method in enumerate(methods):
        values = [each[drawn] for (m, _), each in found.items() if m == method and drawn in each]
        ax.plot(values, [place] * len(values), "o", alpha=0.5, color="tab:blue")
        if drawn in means.get(method, {}):
            ax.plot(
                means[method][drawn], place, "|", markersize=18, markeredgewidth=3, color="black"
            )
    ax.set_yticks(range(len(methods)), methods)
    ax.set(xlabel=f"{drawn} in percent, after the last epoch", ylim=(-0.6, len(methods) - 0.4))
    ax.grid(axis="x", alpha=0.4)
    figure.savefig(target, dpi=110)


def main() -> None:
    """Write the page and its pictures, and the README's table."""
    PAGE.write_text(page(RESULTS))
    README.write_text(with_quotes(README.read_text(), RESULTS))
    for file in files_of(RESULTS):
        draw(file, PAGE.parent / "images" / f"results_{file.stem}.png")


if __name__ == "__main__":
    main()
