"""Make tables of the results; nothing in them is typed by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = ("image AUROC", "image AP", "pixel AUROC", "pixel AP", "AUPRO")
SHOWN = ("image AUROC", "pixel AUROC", "AUPRO", "fit s", "score s")


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file of results, each with its case, method and seed."""
    runs = json.loads(file.read_text())["runs"]
    return [
        {
            **record,
            "case": run["case"],
            "seed": run["seed"],
            "method": ", ".join(filter(None, (run["method"], record["view"]))),
        }
        for run in runs
        for record in run["records"]
    ]


def averaged(rows: list[dict[str, Any]], *keys: str) -> dict[tuple, dict[str, float]]:
    """Return the mean of every figure over the rows that share these keys, and their number."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return {
        group: {
            name: float(np.mean([row[name] for row in members]))
            for name in (*FIGURES, "fit s", "score s")
            if all(name in row for row in members)
        }
        for group, members in groups.items()
    }


def table(file: Path) -> str:
    """Return two tables in Markdown: the means of each method, and its image AUROC in each case."""
    content, rows = json.loads(file.read_text()), rows_of(file)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    means = averaged(rows, "method", "epoch")
    shown = [name for name in SHOWN if any(name in found for found in means.values())]
    lines = [f"### {content['title']}", ""]
    lines += [f"Means over {len(cases)} case(s) and {len(seeds)} seed(s); areas in percent.", ""]
    lines += header(["method", "epochs", *shown])
    for (method, epoch), found in means.items():
        cells = [text(found.get(name)) for name in shown]
        lines.append("| " + " | ".join([method, str(epoch or "until converged"), *cells]) + " |")
    if len(cases) > 1:
        lines += ["", "Image AUROC of each case, after the last epoch:", ""]
        lines += header(["method", *cases])
        single = averaged(rows, "method", "epoch", "case")
        for method in dict.fromkeys(row["method"] for row in rows):
            last = max(epoch for name, epoch in means if name == method)
            found = [single.get((method, last, case), {}).get("image AUROC") for case in cases]
            lines.append("| " + " | ".join([method, *map(text, found)]) + " |")
    return "\n".join(lines) + "\n"


def header(columns: list[str]) -> list[str]:
    """Return the first two lines of a table."""
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def text(value: float | None) -> str:
    """Write a figure, if there is one."""
    return "" if value is None else f"{value:.2f}" if value < 1000 else f"{value:.0f}"
