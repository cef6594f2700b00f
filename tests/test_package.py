"""The package as a whole: imports, docstrings, pages of the documentation, the wheel."""

from __future__ import annotations

import ast
import inspect
import operator
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from importlinter.cli import lint_imports
from numpydoc.validate import validate
from PIL import Image
from skimage.data import lfw_subset
from sklearn.metrics import roc_auc_score

import skmkd
from skmkd import DetectorEnsemble, MemKDDetector, MKDDetector
from skmkd.datasets import list_images

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT / "skmkd").with_suffix("").parts)
    for path in sorted((ROOT / "skmkd").rglob("*.py"))
    if path.stem not in ("__init__", "_version")
]


def test_imports_follow_the_layers():
    """The layers are in pyproject.toml; imports within functions count, too."""
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_every_module_has_its_tests():
    for name in MODULES:
        *package, module = name.split(".")
        folder = ROOT.joinpath("tests", *(part.lstrip("_") for part in package))
        tests = f"test_{module.lstrip('_')}.py" if module != "__main__" else "test__main__.py"
        assert (folder / tests).is_file(), name


def documented_parameters(function_or_class) -> dict[str, str]:
    """Return the type line of every parameter in a numpydoc docstring."""
    text = inspect.getdoc(function_or_class)
    section = re.search(r"\nParameters\n-+\n(.*?)(\n\n[A-Z][a-zA-Z ]+\n-+\n|\Z)", text, re.S)
    return dict(re.findall(r"^([*\w, ]+) : (.*)$", section.group(1), re.M)) if section else {}


@pytest.mark.parametrize("detector", [MKDDetector, MemKDDetector, DetectorEnsemble])
def test_constraints_docstring_and_signature_agree(detector):
    signature = inspect.signature(detector).parameters
    documented = documented_parameters(detector)
    assert list(documented) == list(signature)
    assert set(detector._parameter_constraints) == set(signature)
    for name, parameter in signature.items():
        if name == "detectors":  # the only one without a default
            assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            continue
        assert parameter.kind is parameter.KEYWORD_ONLY
        stated = documented[name].partition("default=")[2]
        assert stated, name
        assert ast.literal_eval(stated) == parameter.default, name


NAMESPACES = [
    skmkd,
    *(
        getattr(skmkd, namespace)
        for namespace in (
            "datasets",
            "distributed",
            "inspection",
            "metrics",
            "model_selection",
            "monitoring",
        )
    ),
]
PUBLIC = [
    getattr(namespace, name) for namespace in NAMESPACES for name in namespace.__all__
    if name != "__version__" and not inspect.ismodule(getattr(namespace, name))
]  # fmt: skip


FUNCTIONS = [public for public in PUBLIC if inspect.isfunction(public)] + [
    method
    for public in PUBLIC if inspect.isclass(public)
    for name, method in inspect.getmembers(public, inspect.isroutine)
    if not name.startswith("_") and method.__module__.startswith("skmkd")
]  # fmt: skip
NAMED = operator.attrgetter("__qualname__")
SCORERS = [public for public in PUBLIC if not inspect.isclass(public) and public not in FUNCTIONS]


@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMED)
def test_public_functions_document_their_parameters(function):
    signature = [
        ("**" if parameter.kind is parameter.VAR_KEYWORD else "") + name
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]
    lines = documented_parameters(function)
    assert [name for line in lines for name in line.split(", ")] == signature
    assert re.search(r"\n(Returns|Yields)\n---", inspect.getdoc(function))


def test_scorers_are_documented():
    assert len(SCORERS) == 4
    for scorer in SCORERS:
        assert list(documented_parameters(scorer)) == ["estimator", "X", "y"]
        assert "\nReturns\n---" in inspect.getdoc(scorer)


@pytest.mark.parametrize("public", [p for p in PUBLIC if inspect.isclass(p)])
def test_public_classes_document_their_parameters(public):
    assert list(documented_parameters(public)) == list(inspect.signature(public).parameters)
    assert "\nExamples\n---" in inspect.getdoc(public)


IGNORED = {  # numpydoc's checks that scikit-learn's docstrings do not pass either
    "ES01",  # an extended summary
    "SA01",  # a section See Also
    "RT02",  # no name for what is returned
}
FULL_NAMES = [
    f"{public.__module__}.{public.__qualname__}" for public in (*FUNCTIONS, *PUBLIC)
    if public not in SCORERS
]  # fmt: skip


WITH_EXAMPLE = ("load_image_folder", "load_mvtec_ad")  # which shows the use of other loaders, too


@pytest.mark.parametrize("name", sorted(set(FULL_NAMES)))
def test_docstrings_are_numpydoc(name):
    errors = validate(name)["errors"]
    is_method = name.split(".")[-2][0].isupper()  # the example of its class is enough
    function = name.rpartition(".")[2]
    is_loader = function.startswith("load_") and function not in WITH_EXAMPLE
    passed = IGNORED | ({"EX01"} if is_method or is_loader else set())
    assert [error for error in errors if error[0] not in passed] == []


@pytest.mark.parametrize(
    "public", [*(p for p in PUBLIC if p not in SCORERS), *FUNCTIONS], ids=NAMED
)
def test_arrays_are_documented_with_their_shapes(public):
    entry = re.compile(r"^([*\w, ]+) : (.*\bndarrays?\b.*)$", re.M)
    for name, kind in entry.findall(inspect.getdoc(public)):
        assert "shape" in kind, f"{name} : {kind}"


def test_public_names():
    namespaces = {
        "datasets", "distributed", "inspection", "metrics", "model_selection", "monitoring",
    }  # fmt: skip
    assert (
        set(skmkd.__all__)
        == {
            "DetectorEnsemble", "ExportedDetector", "MKDDetector", "MemKDDetector", "__version__",
            "load", "load_exported", "regions",
        }
        | namespaces
    )  # fmt: skip
    assert set(skmkd.__all__) <= set(dir(skmkd))
    with pytest.raises(AttributeError, match="module 'skmkd' has no attribute 'nothing'"):
        skmkd.nothing  # noqa: B018
    for namespace in namespaces:
        names = getattr(skmkd, namespace).__all__
        assert names == sorted(names, key=lambda name: (name.islower(), name))
        assert all(hasattr(getattr(skmkd, namespace), name) for name in names)


def test_modules_are_imported_when_they_are_used():
    program = (
        "import sys, skmkd; assert skmkd.__version__; "
        "assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules); "
        "assert skmkd.metrics.aupro_score and skmkd.MKDDetector().get_params()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_api_page_lists_what_is_public():
    page = (ROOT / "docs" / "api.rst").read_text()
    named = re.findall(r"^   (\w+)$|^\.\. autodata:: (\w+)$", page, re.M)
    listed = ["".join(names) for names in named]
    expected = [
        name for namespace in NAMESPACES for name in namespace.__all__
        if name != "__version__" and not inspect.ismodule(getattr(namespace, name))
    ]  # fmt: skip
    assert sorted(listed) == sorted(expected)


def test_links_of_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    local = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
    assert len(local) >= 4
    for link in local:
        assert (ROOT / link).is_file(), link


def test_code_of_the_readme_runs(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    names: dict = {}
    briefly = partial(MKDDetector, max_iter=4)  # as stated, but for fewer epochs
    monkeypatch.setattr(skmkd, "MKDDetector", briefly)
    exec(compile("".join(blocks), "README.md", "exec"), names)
    assert names["labels"].shape == names["scores"].shape == (20,)
    assert names["maps"].shape == names["masks"].shape == (20, 25, 25)
    scores = names["scores"]
    assert roc_auc_score(np.repeat([1, -1], [5, 15]), scores) > 0.9
    assert np.isfinite(names["search"].cv_results_["mean_test_score"]).all()
    assert names["best"].score_samples(names["X"]).shape == (40,)


GUIDE = sorted(
    str(page.relative_to(ROOT / "docs"))
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guide").glob("*.md")]
    if "```python" in page.read_text() and page.stem != "many_machines"  # which needs clusters
)


@pytest.mark.parametrize("page", GUIDE)
def test_code_of_the_guide_runs(page, tmp_path, monkeypatch, capsys):
    """Run a page's code in a folder of small images; detectors are as stated, but train briefly."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    faces = (255 * lfw_subset()).astype(np.uint8)
    for folder, images in (("good", faces[:95]), ("new", faces[95:99])):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / folder / f"{i:02}.png")
    monkeypatch.chdir(tmp_path)
    for detector in (MKDDetector, MemKDDetector):

        def briefly(detector=detector, **parameters):
            return detector(**parameters | {"image_size": 32, "max_iter": 1, "tol": None})

        monkeypatch.setattr(skmkd, detector.__name__, briefly)
    X, y = faces[[*range(12), *range(190, 196)]], np.repeat([1, -1], [12, 6])
    names = {
        "skmkd": skmkd, "MKDDetector": skmkd.MKDDetector, "MemKDDetector": skmkd.MemKDDetector,
        "good": list_images("good"), "new": list_images("new"), "X": X, "y": y, "X_validation": X,
        "detector": skmkd.MKDDetector(),
    }  # fmt: skip
    if page == "guide/saving.md":
        names["detector"].fit(names["good"])
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_built_wheel_contains_weights_and_types(tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "skmkd", source / "skmkd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, *build, str(source)], check=True)
    (wheel,) = tmp_path.glob("skmkd-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    assert (target / "skmkd" / "py.typed").is_file()
    assert (target / "skmkd" / "_cli" / "report.html").is_file()
    assert (target / "skmkd" / "weights" / "PROVENANCE.md").is_file()
    assert wheel.stat().st_size < 45e6
    licences = [path.name for path in target.glob("skmkd-*.dist-info/licenses/**/*")]
    assert {"LICENSE", "PROVENANCE.md", "LICENSE-APACHE-2.0.txt"} <= set(licences)
    program = (
        "import torch, skmkd, skmkd._networks.sources as sources\n"
        "from skmkd._networks.layers import REDUCTIONS\n"
        f"assert skmkd.__file__.startswith({str(target)!r})\n"
        "size, cpu = (32, 32), torch.device('cpu')\n"
        "for name in sources.BUNDLES:\n"
        "    sources.build_source(name, 'bundled', 'auto', REDUCTIONS, size, cpu, 'float32', 0)\n"
    )
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{program}"]
    subprocess.run(run, cwd=tmp_path, check=True)
