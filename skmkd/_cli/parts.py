"""One part of a long list of images, as a command of its own."""

from __future__ import annotations

import argparse
import sys

from skmkd._cli.paths import counted, new_images
from skmkd.distributed import score_shard
from skmkd.distributed._shards import FORMATS as PARTS


def score_part(args: argparse.Namespace) -> None:
    """Score the part of the images that `--shard` names, into a file of its own.

    Raises
    ------
    ValueError
        If options do not go together.
    """
    if args.shard is None:
        option = "--resume" if args.resume else "--format parquet"
        raise ValueError(f"{option} must be given with --shard; got none. --shard 1/1 is all.")
    if args.output is None:
        raise ValueError("--output must be a folder for the parts with --shard; got none.")
    for name in ("report", "drift", "engine", "on_error"):
        if getattr(args, name):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must not be given with --shard.")
    if args.format not in PARTS:
        raise ValueError(f"--format must be {' or '.join(PARTS)} with --shard; got {args.format}.")
    part, n_errors = score_shard(
        args.model, new_images(args.images), args.output, shard=args.shard, resume=args.resume,
        file_format=args.format, device=args.device, verbose=int(sys.stderr.isatty()),
    )  # fmt: skip
    print(part)
    if n_errors:
        print(f"skmkd: {counted(n_errors, 'image')} without a score: see error", file=sys.stderr)
