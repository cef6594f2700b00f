"""Scoring and fitting on many processes and machines."""

from skmkd.distributed._clusters import score_dask, score_ray
from skmkd.distributed._fitting import fit_many
from skmkd.distributed._scorer import Scorer
from skmkd.distributed._shards import score_shard

__all__ = ["Scorer", "fit_many", "score_dask", "score_ray", "score_shard"]
