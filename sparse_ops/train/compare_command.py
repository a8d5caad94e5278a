"""sparse-ops compare: everything is checked, then trained, then timed, then told."""

import argparse
from pathlib import Path

from sparse_ops.train import compare, compare_report, compare_work, published, recipe
from sparse_ops.train.compare_store import Store
from sparse_ops.train.job import Job, Options
from sparse_ops.train.progress import Plain


def run(arguments: argparse.Namespace) -> int:
    """0 where every run is finished, 1 where one has failed; ValueError before anything is touched for bad input."""
    overrides = dict(map(recipe.parse_override, arguments.set))
    base = recipe.read(arguments.recipe, overrides)
    path = arguments.out or Path("runs") / f"compare-{arguments.recipe.stem}"
    points = arguments.published or published.PAPERS
    published.read(points)
    options = Options(path, arguments.data_dir, arguments.device, download=arguments.download)
    job = Job(base, options, Plain())
    seeds = range(base.seed, base.seed + arguments.seeds)
    asked = (arguments.methods, arguments.sparsities, seeds)
    comparison = compare.make(base, *asked, arguments.epochs) if arguments.epochs else None
    data = job.load()
    if comparison is None:
        comparison = compare.make(base, *asked, compare.length(base, data, options))
    compare.check(comparison, data, options)
    store = Store(path)
    store.begin(comparison)
    settings = compare_work.Settings(arguments.data_dir, arguments.device, arguments.threads, arguments.jobs)
    try:
        compare_work.train(comparison, store, settings, data)
        untimed = [] if arguments.no_speed else compare_work.measure(comparison, store, settings, data)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with {path}, each run from its last whole epoch")
        return 130
    failures = compare_work.failures(comparison, store)
    if len(failures) < len(comparison.runs):
        table, page, missing = compare_report.write(path, points)
        print(f"\n{table}\n\n{f'report: {page}' if page else f'no report: {missing}'}")
    if failures:
        print(f"{len(failures)} of {len(comparison.runs)} runs have failed; the same command tries them again")
    if untimed:
        print(f"{len(untimed)} networks could not be timed; the same command tries them again")
    return 1 if failures or untimed else 0
