"""Asks all four questions of a finished run, and writes what it finds."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.machinery.output import machine
from benchmarks.sceptic import ablation, generalization, random_search, report, supernet_ranks
from benchmarks.sceptic.display import Answer
from benchmarks.sceptic.finished_run import FinishedRun
from glora_jax.method.genomes import check_budget

LABEL = "DIAGNOSTIC: read test images; chooses no default, and is no part of the run's result"


def diagnose(finished: FinishedRun, *, seeds: int = 5, subnets: int = 12) -> Answer:
  """Answers the four questions; writes, and returns, what `diagnostics.json` holds.

  Args:
    finished: what `finished_run.load` returned.
    seeds: searches, and random searches, of question a.
    subnets: that are trained alone for question b.
  """
  seconds: dict[str, float] = {}

  def timed(name: str, answer: Callable[..., Answer], *arguments: Any) -> Answer:
    start = time.perf_counter()
    result = answer(finished, *arguments)
    seconds[name] = round(time.perf_counter() - start, 1)
    return result

  diagnostics = {
    'benchmark': 'sceptic',
    'label': LABEL,
    'machine': machine(),
    'run': describe(finished),
    'random_search': timed('random_search', random_search.answer, seeds),
    'supernet_ranks': timed('supernet_ranks', supernet_ranks.answer, subnets),
    'generalization': timed('generalization', generalization.answer),
    'ablation': timed('ablation', ablation.answer),
    'seconds': seconds,
  }
  report.write(finished.run.path('diagnostics'), diagnostics)
  return diagnostics


def describe(finished: FinishedRun) -> Answer:
  """What the report says of the run itself."""
  run, settings = finished.run, finished.run.settings
  return {
    'task': run.task.name,
    'seed': settings.seed,
    'budget': check_budget(settings.budget),
    'mode': settings.search.mode,
    'fitness': settings.search.fitness,
    'evaluations': len(finished.archive),
    # Trained on the validation images, too: what it gets right of them says nothing.
    'finetuned_on_val': settings.finetune.on == 'train+val' and settings.finetune.epochs > 0,
    'images': {split: len(run.data(split).labels) for split in ('train', 'val', 'test')},
  }
