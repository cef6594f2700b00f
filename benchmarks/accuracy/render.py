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

from benchmarks.accuracy.runner import FOLDER, FOLLOWED, PROTOCOLS, RESULTS, read_protocol

PAGE = FOLDER.parents[1] / "docs" / "results.md"
FIGURES = ("image AUROC", "image AP", "pixel AUROC", "pixel AP", "AUPRO")
SHOWN = ("image AUROC", "pixel AUROC", "AUPRO")
TITLE = """# Results

Every figure here comes from a file in `benchmarks/accuracy/results`, which says with which
settings, seeds and versions, on which processor and when each run was made. The command above a
table makes its results anew; it goes on where it was interrupted.
`python -m benchmarks.accuracy.render` writes this page.

Areas are in percent; AUPRO goes to a false-positive rate of 0.3. Defects are synthetic where the
title says so. What the methods cost is measured by [benchmarks](benchmarks.md), in ratios.
"""


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file of results, each with its case, method and seed."""
    runs = json.loads(file.read_text())["runs"]
    return [
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


def averaged(rows: list[dict[str, Any]], *keys: str) -> dict[tuple, dict[str, Any]]:
    """Return the mean of every figure over the rows that share these keys, and their number."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return {
        group: dict(zip(keys, group, strict=True))
        | {
            name: float(np.mean([row[name] for row in members]))
            for name in FIGURES
            if all(name in row for row in members)
        }
        | {"n": len(members)}
        for group, members in groups.items()
    }


def table(file: Path) -> str:
    """Return tables in Markdown: the means of each method, and each figure in each case.

    Methods of fewer cases than others are left out of the means, which they would distort.
    """
    content, rows = json.loads(file.read_text()), rows_of(file)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    trained = {row["method"] for row in rows if row["trained"]}
    single = averaged(rows, "method", "epoch", "case")
    means = averaged(list(single.values()), "method", "epoch")  # each case counts once
    whole = [key for key in means if all((*key, case) in single for case in cases)]
    shown = [name for name in SHOWN if any(name in means[key] for key in whole)]
    lines = [f"## {content['title']}", "", f"    python -m benchmarks.accuracy {file.stem}", ""]
    lines += [f"Means over {counted(len(cases), 'case')}:", ""]
    lines += header(["method", "epochs", "seeds", *shown])
    for method, epoch in whole:
        found = means[method, epoch]
        cells = [text(found.get(name)) for name in shown]
        length = str(epoch or ("until converged" if method in trained else ""))
        seeds = min(single[method, epoch, case]["n"] for case in cases)
        lines.append(row_of([method, length, str(seeds), *cells]))
    for name in shown if len(cases) > 1 else ():
        lines += ["", f"{name[0].upper()}{name[1:]} of each case, after the last epoch:", ""]
        lines += header(["method", *cases])
        for method in dict.fromkeys(row["method"] for row in rows):
            last = max(epoch for found, epoch in means if found == method)
            cells = [single.get((method, last, case), {}).get(name) for case in cases]
            if any(cell is not None for cell in cells):
                lines.append(row_of([method, *map(text, cells)]))
    return "\n".join(lines) + "\n"


def header(columns: list[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [row_of(columns), "|" + "---|" * len(columns)]


def row_of(cells: list[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"


def counted(n: int, what: str) -> str:
    """Return a number and what it counts."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def text(value: float | None) -> str:
    """Write a figure, if there is one."""
    return "" if value is None else f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def page(results: Path) -> str:
    """Return the page: a section for each protocol that has results, ablations last."""
    sections = []
    names = (path.stem for path in PROTOCOLS.glob("*.toml"))
    for name in sorted(names, key=lambda name: (name.startswith("ablation"), name)):
        file = results / f"{name}.json"
        if file.exists():
            picture = f"![Areas under the ROC curve, a dot a case](images/results_{name}.png)\n"
            note = read_protocol(name, quick=False).get("note", "")
            sections.append("\n".join(filter(None, (table(file), note, picture))))
    return "\n".join([TITLE, *sections])


def draw(file: Path, target: Path) -> None:
    """Draw the area of every method that the protocol is about, by default the image AUROC.

    A dot is a case, a bar the mean.
    """
    from matplotlib.figure import Figure

    rows, drawn = rows_of(file), read_protocol(file.stem, quick=False).get("drawn", "image AUROC")
    last: dict[str, int] = {}
    for row in rows:
        last[row["method"]] = max(row["epoch"], last.get(row["method"], 0))
    methods = list(last)[::-1]
    found = averaged(rows, "method", "epoch", "case")
    figure = Figure(figsize=(7, 0.9 + 0.42 * len(methods)), layout="constrained")
    ax = figure.subplots()
    for place, method in enumerate(methods):
        values = [v[drawn] for k, v in found.items() if k[:2] == (method, last[method])]
        ax.plot(values, [place] * len(values), "o", alpha=0.5, color="tab:blue")
        ax.plot([np.mean(values)], [place], "|", markersize=18, markeredgewidth=3, color="black")
    ax.set_yticks(range(len(methods)), methods)
    ax.set(xlabel=f"{drawn} in percent, after the last epoch", ylim=(-0.6, len(methods) - 0.4))
    ax.grid(axis="x", alpha=0.4)
    figure.savefig(target, dpi=110)


def main() -> None:
    """Write the page and its pictures."""
    PAGE.write_text(page(RESULTS))
    for file in sorted(RESULTS.glob("*.json")):
        draw(file, PAGE.parent / "images" / f"results_{file.stem}.png")


if __name__ == "__main__":
    main()
