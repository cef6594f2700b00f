"""Sphinx configuration; build with ``sphinx-build -W docs docs/_build``, without a network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx_gallery.sorting import ExplicitOrder

os.environ["MPLBACKEND"] = "agg"

import skmkd

project = "skmkd"
author = "the skmkd developers"
copyright = f"2026, {author}"
version = release = skmkd.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
if "SKMKD_DOCS_ONLINE" in os.environ:  # intersphinx downloads inventories
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
smartquotes = False  # keep "auto" as typed
templates_path = ["_templates"]
exclude_patterns = ["_build", "images/README.md"]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False
autodoc_typehints = "none"  # docstrings give types, shapes and ranges
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

FIRST_TO_LAST = (
    "quickstart", "folder", "threshold", "localization", "large_images", "layers", "digits",
    "augmentation", "pipeline", "grid_search", "out_of_core", "own_source", "memkd",
)  # fmt: skip
sphinx_gallery_conf = {
    "examples_dirs": str(Path(__file__).parents[1] / "examples"),
    "within_subsection_order": ExplicitOrder([f"plot_{name}.py" for name in FIRST_TO_LAST]),
    "gallery_dirs": "gallery",
    "doc_module": ("skmkd",),
    "backreferences_dir": "_build/backreferences",
    "reference_url": {"skmkd": None},
    "show_memory": False,
    "min_reported_time": 0,
    "abort_on_example_error": True,
}

html_math_renderer = "mathml"  # rendered by browsers, without a network
myst_update_mathjax = False
html_theme = "pydata_sphinx_theme"
html_title = "skmkd"
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": True,
    "header_links_before_dropdown": 7,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "default",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "results": [], "changelog": []}


def inline_math(writer: Any, node: nodes.math) -> None:
    """Write an inline formula."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(writer: Any, node: nodes.math_block) -> None:
    """Write a displayed formula."""
    formula = convert(node.astext(), display="block")
    writer.body.append(f'<div style="margin: 1em 0">{formula}</div>')
    raise nodes.SkipNode


def skip_request_methods(app: Any, what: str, name: str, *_: Any) -> bool | None:
    """Leave out the ``set_..._request`` methods that scikit-learn generates."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Any) -> None:
    """Register the renderer of formulas and the choice of members."""
    app.connect("autodoc-skip-member", skip_request_methods)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
