"""Ray and Dask on this machine: the same bits as one process, also when a worker dies."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import copy
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import skmkd
from skmkd.distributed import Scorer, _clusters, fit_many, score_dask, score_ray
from skmkd.distributed._scorer import COLUMNS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FEW = 400  # images
needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="needs Dask")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
quiet_ray = pytest.mark.filterwarnings(  # of Ray, which sets its own deprecated defaults
    "ignore::DeprecationWarning:ray.data.context"
)


class DyingOnce(Scorer):
    """A scorer whose process is killed half-way, the first time."""

    def __call__(self, batch):
        flag = Path(self.model).with_suffix(".died")
        paths = batch["path"] if isinstance(batch, dict) else batch
        if any(path.endswith(f"{FEW // 2:04}.png") for path in paths) and not flag.exists():
            flag.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


@pytest.fixture
def dying(model, monkeypatch):
    """A file that is there when a worker was killed."""
    monkeypatch.setattr(_clusters, "Scorer", DyingOnce)
    flag = model.with_suffix(".died")
    yield flag
    flag.unlink(missing_ok=True)


def check(columns, expected, n=None):
    assert list(columns) == list(COLUMNS)
    for name in COLUMNS:
        assert_array_equal(columns[name], expected[name][:n])


def check_fits(backend, faces, brief, folder):
    """Check that fits on joblib's backend are those of this process."""
    products = {name: faces[i : i + 4] for i, name in enumerate(["a", "b", "c"])}
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in workers; training differs with the number
    try:
        fit_many(products, folder / "here", detector=brief)
    finally:
        torch.set_num_threads(n_threads)
    with joblib.parallel_config(backend, n_jobs=2):  # Ray's is 1 by default: here
        rows = fit_many(products, folder / "there", detector=brief)
    assert sorted((row["name"], row["error"]) for row in rows) == [("a", ""), ("b", ""), ("c", "")]
    for name in products:
        scores = [
            skmkd.load(folder / place / f"{name}.skmkd").score_samples(faces[:20])
            for place in ("here", "there")
        ]
        assert_array_equal(*scores)
        assert np.isfinite(scores[0]).all()


@pytest.fixture(scope="module")
def client():
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@needs_dask
def test_dask(client, model, paths, expected):
    check(score_dask(paths, model, client, batch_size=128), expected)


@needs_dask
def test_bags_and_arrays_of_dask(client, model, faces, paths, expected):
    import dask.array
    import dask.bag

    bag = dask.bag.from_sequence(paths[:FEW], npartitions=3)
    check(score_dask(bag, model, client), expected, FEW)
    array = dask.array.from_array(faces[:40], chunks=(16, 13, -1))
    check(score_dask(array, model, client), Scorer(model)(faces[:40]))


@needs_dask
def test_no_images_for_dask(client, model):
    check(score_dask([], model, client), Scorer(model)([]))


@needs_dask
def test_a_worker_of_dask_dies(client, model, paths, expected, dying):
    check(score_dask(paths[:FEW], model, client, batch_size=32), expected, FEW)
    assert int(dying.read_text()) != os.getpid()


def code_of(page, *, ray):
    """Return the code of the guide's page, without the blocks that need Ray or with those only."""
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    needs_ray = ["score_ray" in block for block in blocks]
    assert sum(needs_ray) == 1
    assert len(blocks) == 8
    return "".join(block for block, needs in zip(blocks, needs_ray, strict=True) if needs == ray)


@needs_dask
def test_fits_on_dask(client, faces, brief, tmp_path):
    check_fits("dask", faces, brief, tmp_path)


@needs_dask
def test_the_guide_on_dask(client, guide, tmp_path):
    code = code_of(guide, ray=False).replace("tcp://scheduler:8786", client.scheduler.address)
    names: dict = {}
    exec(compile(code.replace("n_jobs=2", "n_jobs=1"), "many_machines.md", "exec"), names)
    data = tmp_path / "data"
    assert names["columns"]["id"] == [1, 2]
    assert names["part"].name == "part-00003-of-00016.csv"
    assert sorted(path.name for path in (data / "models").glob("*.skmkd")) == ["a.skmkd", "b.skmkd"]
    assert names["failed"] == []
    assert np.isfinite(names["search"].cv_results_["mean_test_score"]).all()


@pytest.fixture(scope="module")
def ray():
    import ray

    places = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


def columns_in(folder):
    from pyarrow import parquet

    return {
        name: column.to_numpy()
        for name, column in zip(
            COLUMNS, parquet.read_table(folder).sort_by("path").columns, strict=True
        )
    }


@pytest.mark.ray
@needs_ray
@quiet_ray
def test_ray_goes_on(ray, model, paths, expected, dying, tmp_path):
    """An actor dies half-way, files are lost afterwards; in the end, each image has its row."""
    out = tmp_path / "scores"
    assert score_ray(paths, model, out, actors=2, batch_size=100) == out
    assert int(dying.read_text()) != os.getpid()
    check(columns_in(out), expected)
    files = sorted(out.glob("*.parquet"))
    files[3].write_bytes(b"PAR1")
    files[5].unlink()
    before = {file: file.stat() for file in set(files) - {files[3], files[5]}}
    score_ray(paths, model, out)
    check(columns_in(out), expected)
    assert {file: file.stat() for file in before} == before
    n_files = len(list(out.iterdir()))
    score_ray(paths, model, out)  # nothing is left to do
    assert len(list(out.iterdir())) == n_files


@pytest.mark.ray
@needs_ray
@quiet_ray
def test_datasets_of_ray(ray, model, faces, tmp_path):
    from pyarrow import parquet

    dataset = ray.data.from_numpy(faces[:20])
    dataset = dataset.map_batches(lambda batch: {"image": batch["data"], "id": np.arange(20)})
    score_ray(dataset, model, tmp_path / "scores", actors=(1, 2))
    table = parquet.read_table(tmp_path / "scores").sort_by("id")
    assert_array_equal(table["score"].to_numpy(), Scorer(model)(faces[:20])["score"])


@pytest.mark.ray
@needs_ray
@quiet_ray
def test_the_guide_on_ray(ray, guide, tmp_path):
    exec(compile(code_of(guide, ray=True), "many_machines.md", "exec"), {})
    archive = [str(path) for path in sorted((tmp_path / "data" / "archive").iterdir())]
    check(columns_in(tmp_path / "data" / "ray"), Scorer(tmp_path / "data" / "part.skmkd")(archive))


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [(None, 0, None), (None, 0.5, "auto"), ("cpu", 1, "cpu"), ("cuda", 0, "cuda")],
)
def test_an_actor_with_a_gpu_scores_on_it(model, tmp_path, monkeypatch, device, num_gpus, expected):
    asked = {}

    class Images:
        def map_batches(self, scorer, **options):
            asked.update(options)
            return SimpleNamespace(write_parquet=lambda folder: None)

    strategy = SimpleNamespace(ActorPoolStrategy=lambda **limits: limits)
    monkeypatch.setattr("skmkd.distributed._clusters.needed", lambda *_: strategy)
    score_ray(Images(), model, tmp_path, num_gpus=num_gpus, device=device)
    assert asked["num_gpus"] == num_gpus
    assert asked["fn_constructor_kwargs"]["device"] == expected


@pytest.mark.ray
@needs_ray
def test_what_ray_cannot_write(model, paths, tmp_path):
    with pytest.raises(ValueError, match="paths in Parquet must be valid UTF-8; got 'a.udcff"):
        score_ray(["a\udcff"], model, tmp_path / "scores")
    other = Path(copy(model, tmp_path / "other.skmkd"))
    other.write_bytes(b"another")
    with pytest.raises(ValueError, match="scores was begun with another model. Choose another"):
        score_ray(paths, other, tmp_path / "scores")


@pytest.mark.ray
@needs_ray
@quiet_ray
def test_fits_on_ray(ray, faces, brief, tmp_path):
    from ray.util.joblib import register_ray

    register_ray()
    check_fits("ray", faces, brief, tmp_path)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("dask", lambda: score_dask([], "model.skmkd", None)),
        ("ray.data", lambda: score_ray([], "model.skmkd", "out")),
    ],
)
def test_an_extra_is_missing(package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    extra = package.split(".")[0]
    with pytest.raises(ImportError, match=rf'score_{extra} needs {package}: pip install "skmkd\['):
        call()
