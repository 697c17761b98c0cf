"""A job whose stages write a line each."""

import dataclasses
import operator
import pathlib

from tiny_runs import changed

from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.stage import Stage, walk


@dataclasses.dataclass(frozen=True, eq=False)
class TinyContext(Context):
  """A context without images and model."""

  shards: int = 1


class Job:
  """Three stages, of which the last takes the results of both others, and what was run of them."""

  def __init__(self, folder, shared=None):
    self.folder, self.shared, self.ran = folder, shared, []
    last = ('second', 'parts/third')
    self.stages = (
      self.make('first', 'search.parents', shared=True),
      self.make('second', 'budget', splits=('train',)),
      self.make('parts/third', 'search.mode', after=('first',)),
      Stage('last', lambda _, *results: results, after=last, has_folder=False),
    )

  def make(self, name, field, **options):
    """A stage that leaves a file with what it read."""

    def run(context, *results):
      path = pathlib.Path(context.path(name, 'genome.json'))
      if not path.exists():
        self.ran.append(name)
        value = operator.attrgetter(field)(context.settings)
        path.write_text(f'{value}, {context.facts}, {context.settings.seed}, {results}')
      return path.read_text()

    return Stage(name, run, (field,), **options)

  def start(self, facts=(), shards=1, until=None, **values):
    """Walks the stages with other values of the config; (result, what was run)."""
    self.ran.clear()
    result = walk(self.context(facts, shards, **values), self.stages, until)
    return result, list(self.ran)

  def context(self, facts=(), shards=1, **values):
    """What the stages are given."""
    return TinyContext(
      settings=check_config(changed(default_config(), **values)),
      workdir=str(self.folder),
      images=None,
      adapted=None,
      variables={},
      metadata={},
      shared=self.shared and str(self.shared),
      facts=dict(facts),
      shards=shards,
    )
