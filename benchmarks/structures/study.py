"""A pretrained model on tasks of real data: methods of one size trained, timed and compared.

All trainings start from one warm head, which is the linear probe. Each structure is fixed, and a
program of its own: a free one would be twice as slow here. Rates are chosen on development tasks,
with a seed that no table uses; final tasks are tested once for each seed.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  print_result,
  print_table,
  seconds,
)
from benchmarks.structures import figure
from benchmarks.structures import laboratory as lab
from benchmarks.structures.jobs import (
  Job,
  Method,
  read_rates,
  read_results,
  run_jobs,
)
from benchmarks.structures.methods import distinct, random_scores
from benchmarks.structures.statistics import difference, pack, unpack
from benchmarks.structures.tables import Line, Row, as_json, line_of, print_lines, rows_of
from glora_jax.files import read_json, write_json
from glora_jax.method.adapt import adapt_function
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import SearchSpace
from glora_jax.search.allocate import allocate
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import choose
from glora_jax.search.unit_scores import mean_scores
from glora_jax.training import loop
from glora_jax.training.fit import linear_probe, step_loss
from glora_jax.training.losses import classification, cross_entropy
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data.pipeline import Split

MAX_RANK = 8
OURS, TRANSFER, PROBE, CEILING = 'gradient', 'transfer', 'linear', 'finetuning'
SEEDS, CHOOSING_SEED = range(3), 1000
STEPS, REPEATS = 3, 5  # that are timed
COLUMNS = ('seconds', 'warm head', 'gradient', 'steps')


class Learner(NamedTuple):
  """What is trained.

  Attributes:
    loss: of a batch; see `loop.minimize`.
    trainable: what gets gradients.
    frozen: what does not.
    fold: trained arrays to parameters of the plain model.
    params: their number.
  """

  loss: loop.LossFn
  trainable: Any
  frozen: Any
  fold: Callable[[Any], Any]
  params: int


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """A model, its tasks, and what is trained on them.

  Attributes:
    name: of the benchmark and its pictures.
    results: folder of the results that are kept.
    load: gives the parameters of the model with a new head.
    logits: `logits(params, inputs)` of the plain model, [example, class].
    draw: gives the splits 'train' and 'test' of a task and a seed.
    development: tasks that rates are chosen on, and transferred scores come from.
    final: tasks that are tested.
    budget: most parameters of the structures that fill one.
    fixed: names of the fixed methods, of at most that size.
    rates: learning rates to choose from, by method.
    head: recipe of the warm head.
    epochs: of a training.
    gradient_batch: examples of a batch in the gradient's pass.
    batch_size: of a step.
    randoms: number of random structures.
  """

  name: str
  results: str
  load: Callable[[], Any]
  logits: Callable[[Any, jax.Array], jax.Array]
  draw: Callable[[str, int], dict[str, Split]]
  development: Sequence[str]
  final: Sequence[str]
  budget: int
  fixed: Sequence[str]
  rates: Mapping[str, Sequence[float]]
  head: Recipe
  epochs: int
  gradient_batch: int
  batch_size: int = 32
  randoms: int = 0

  @property
  def methods(self) -> list[Method]:
    """All methods, the linear probe first and full fine-tuning last."""
    bought = [*(f'random({number})' for number in range(self.randoms)), OURS, TRANSFER]
    return [
      *((name, 0) for name in (PROBE, *self.fixed)),
      *((name, self.budget) for name in bought),
      (CEILING, 0),
    ]

  @functools.cached_property
  def adapted(self) -> Adapted:
    """The model with a free structure."""
    inputs, _ = self.draw(self.development[0], CHOOSING_SEED)['train']
    one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    space = SearchSpace(ranks=tuple(range(1, MAX_RANK + 1)))
    return adapt_function(self.logits, self.params, one, space=space)

  @functools.cached_property
  def params(self) -> Any:
    """The pretrained parameters."""
    return self.load()

  @functools.lru_cache(maxsize=4)  # noqa: B019
  def start(self, task: str, seed: int) -> dict[str, Any]:
    """The variables with the warm head."""
    variables = self.adapted.init(lab.key_of(seed, 'init'), self.params)
    train, key = self.draw(task, seed)['train'], lab.key_of(seed, 'head')
    parts = self.adapted, variables, classification(), train, self.head
    return linear_probe(*parts, key=key, progress=False)

  @functools.lru_cache(maxsize=8)  # noqa: B019
  def allocation(self, task: str, seed: int) -> Allocation:
    """What the gradient of a task finds, in one pass over what is learned from."""

    def loss(forward, batch, key):
      del key
      return cross_entropy(forward(batch[0]), batch[1])[0]

    inputs, labels = map(jnp.asarray, self.draw(task, seed)['train'])
    parts = np.arange(len(labels)).reshape(-1, self.gradient_batch)
    return allocate(
      self.adapted,
      self.start(task, seed),
      loss,
      [(inputs[part], labels[part]) for part in parts],
      budget=self.budget,
      max_rank=MAX_RANK,
      key=lab.key_of(seed, 'structure'),
      progress=False,
    )

  def structure(self, job: Job) -> tuple[Any, dict[str, Any]]:
    """A job's structure, and the variables that its training starts from."""
    if not job.budget:
      return job.method, self.start(job.task, job.seed)
    if job.method == OURS:
      found = self.allocation(job.task, job.seed)
      return found.genome, found.variables
    spec = self.adapted.spec
    if job.method == TRANSFER:  # from the development tasks, without a gradient of this one
      others = [task for task in self.development if task != job.task]
      scores = mean_scores([self.allocation(task, job.seed).scores for task in others])
      return choose(distinct(spec), scores, self.budget), self.start(job.task, job.seed)
    scores = random_scores(spec, int(job.method.removeprefix('random(')[:-1]))
    found = self.allocation(job.task, job.seed)
    return choose(distinct(spec), scores, self.budget), found.variables

  def learner(self, job: Job) -> Learner:
    """What a job trains."""
    if job.method == CEILING:
      params = self.start(job.task, job.seed)['params']

      def loss(params, frozen, batch, key):
        del frozen, key
        return cross_entropy(self.logits(params, batch[0]), batch[1])

      size = sum(leaf.size for leaf in jax.tree.leaves(params))
      return Learner(loss, params, {}, lambda trained: trained, size)
    found, variables = self.structure(job)
    fixed = self.adapted.fix(found)
    trainable, frozen = fixed.split(variables)
    return Learner(
      step_loss(fixed, classification()),
      trainable,
      frozen,
      lambda trained: fixed.fold(fixed.join(trained, frozen)),
      fixed.count_params(),
    )

  def steps(self, job: Job) -> int:
    """The steps of an epoch."""
    return len(self.draw(job.task, job.seed)['train'].labels) // self.batch_size

  def optimizer(self, job: Job) -> optax.GradientTransformation:
    """AdamW, a tenth of all steps warm-up, then a cosine."""
    steps = job.epochs * self.steps(job)
    rate = optax.warmup_cosine_decay_schedule(0.0, job.rate, steps // 10, steps, 0.01 * job.rate)
    return optax.adamw(rate)

  def fit(self, job: Job, what: Learner) -> Any:
    """The trained arrays; a probe is trained already."""
    if job.method == PROBE:
      return what.trainable
    return loop.minimize(
      what.loss,
      what.trainable,
      what.frozen,
      self.draw(job.task, job.seed)['train'],
      Recipe(epochs=job.epochs, warmup_epochs=0, batch_size=self.batch_size),
      lab.key_of(job.seed, 'order'),
      tx=self.optimizer(job),
      steps_per_dispatch=self.steps(job),  # one shape, one program
      progress=False,
    ).trainable

  @functools.cached_property
  def classes(self) -> Callable[[Any, jax.Array], jax.Array]:
    """The compiled plain model: the classes of inputs."""
    return jax.jit(lambda params, inputs: self.logits(params, inputs).argmax(-1))

  def run(self, job: Job) -> dict[str, Any]:
    """The trained parameters of a job, and its right answers; JSON types."""
    what = self.learner(job)
    params = what.fold(self.fit(job, what))
    inputs, labels = self.draw(job.task, job.seed)['test']
    number = -(-len(labels) // self.batch_size)
    shape = (number, self.batch_size, *inputs.shape[1:])
    blocks = np.resize(inputs, shape)  # the first ones fill up the last block
    found = np.concatenate([self.classes(params, block) for block in blocks])
    right = found[: len(labels)] == labels
    return {'params': what.params, 'tests': len(labels), 'answers': pack(right)}

  def jobs(self, tasks: Sequence[str]) -> list[Job]:
    """All trainings of some tasks, each method at its rate; random structures share one."""
    rates = {(PROBE, 0): 0.0, **read_rates(self.results)}
    for number in range(1, self.randoms):
      rates[f'random({number})', self.budget] = rates['random(0)', self.budget]
    return [
      Job(task, *method, rates[method], seed, self.epochs)
      for seed in SEEDS
      for task in tasks
      for method in self.methods
    ]

  def timed(self, job: Job) -> Callable[[], Any]:
    """A call that does the next steps of a job; the first compiles."""
    what, tx = self.learner(job), self.optimizer(job)
    steps, rows = loop.make_steps(what.loss, tx), np.arange(STEPS * self.batch_size)
    data = jax.tree.map(jnp.asarray, self.draw(job.task, job.seed)['train'])
    order = lab.key_of(job.seed, 'order')
    fixed = what.frozen, data, rows.reshape(STEPS, -1), order
    trainable = jax.tree.map(jnp.array, what.trainable)
    state = [trainable, tx.init(trainable)]

    def call() -> Any:
      state[:] = steps(*state, 0, *fixed)[:2]
      return state

    return call


def choose_rates(study: Study, folder: str) -> None:
  """Trains every method at all its rates on the development tasks, and keeps the best of each."""
  methods = [method for method in study.methods if method[0] in study.rates]
  jobs = [
    Job(task, *method, rate, CHOOSING_SEED, study.epochs)
    for method in methods
    for rate in study.rates[method[0]]
    for task in study.development
  ]
  run_jobs(jobs, folder, study.run)
  results, means = read_results(folder), {}
  for job in jobs:
    right = unpack(results[job]['answers'], results[job]['tests'])
    means.setdefault((job.method, job.budget), {}).setdefault(job.rate, []).append(right.mean())
  best = {method: max(found, key=lambda rate: sum(found[rate])) for method, found in means.items()}
  best[TRANSFER, study.budget] = best[OURS, study.budget]
  lines = [
    (name, str(rate), *(100 * mean for mean in accuracies))
    for (name, _), found in means.items()
    for rate, accuracies in found.items()
  ]
  print_table(dict.fromkeys(('method', 'rate', *study.development), '.1f'), lines)
  write_json(
    os.path.join(folder, 'rates.json'), {'rates': [[*m, rate] for m, rate in best.items()]}
  )


def time_steps(study: Study, folder: str) -> None:
  """Times what comes before the steps of every method, and some of these; keeps a training's."""
  task = study.development[0]
  head = seconds(lambda: study.start(task, CHOOSING_SEED))
  gradient = seconds(lambda: study.allocation(task, CHOOSING_SEED).variables)
  jobs = {job.method: job._replace(seed=CHOOSING_SEED) for job in study.jobs([task])}
  times = in_turn({name: study.timed(job) for name, job in jobs.items() if name != PROBE}, REPEATS)
  found = {  # a random structure starts on the gradient's vectors, too
    name: [
      head,
      gradient * (job.budget > 0 and name != TRANSFER),
      study.epochs * study.steps(job) / STEPS * times.median(name) if name in times else 0.0,
    ]
    for name, job in jobs.items()
  }
  print_table(dict.fromkeys(COLUMNS, ',.1f'), [(name, *parts) for name, parts in found.items()])
  write_json(os.path.join(folder, 'seconds.json'), found)
  print_result(f'{study.name}.seconds', found)


def print_and_draw(study: Study, folder: str, pictures: str) -> None:
  """Prints accuracies with intervals and seconds, and ours against all others, task by task."""
  results, lines, accuracies = read_results(folder), {}, {}
  path = os.path.join(folder, 'seconds.json')
  measured = read_json(path) if os.path.exists(path) else {}
  times = {name: sum(parts) for name, parts in measured.items()}
  for task in study.final:
    rows = {row.method[0]: row for row in rows_of(results, task, study.methods)}
    means = {name: difference(row.right, 0 * row.right) for name, row in rows.items()}
    print_table(
      {task: '', 'params': ',', 'accuracy': '', 'seconds': ',.0f'},
      [
        (name, row.params, '{:.1f} [{:.1f}, {:.1f}]'.format(*means[name]), times.get(name))
        for name, row in rows.items()
      ],
    )
    if OURS in rows:
      best, second = sorted(rows.values(), key=lambda row: -row.mean)[:2]
      print(f'{best.method[0]} against {second.method[0]}, McNemar: {chances(best, second)}')
      ours = rows.pop(OURS)
      fixed = [rows[name] for name in study.fixed if name in rows]
      lines[task] = line_of(ours, fixed, [*rows.values()])
      accuracies[task] = means
  if lines:
    print_lines(f'{study.budget:,} parameters', lines)
    draw(study, pictures, lines)
  print_result(study.name, {**as_json(lines), 'accuracies': accuracies, 'seconds': times})


def chances(one: Row, other: Row) -> str:
  """McNemar's exact p-value of two methods, for each seed."""
  found = []
  for ours, theirs in zip(one.right, other.right, strict=False):
    only = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    found.append(stats.binomtest(only[0], max(sum(only), 1)).pvalue)
  return ', '.join(f'p = {chance:.2g}' for chance in found)


def draw(study: Study, folder: str, lines: Mapping[str, Line]) -> None:
  """Draws differences to the best fixed method."""
  height = figure.HEIGHT + figure.LINE * len(lines) + figure.LEGEND
  picture = Figure(figsize=(figure.WIDTH, height), layout='constrained')
  figure.draw_differences(picture.subplots(), lines, [*lines], lambda task: 'o')
  figure.draw_legend(picture, lines.values())
  picture.savefig(os.path.join(folder, f'{study.name}.png'), dpi=175)


def quick(study: Study) -> None:
  """A short training of three methods whose results are not kept."""
  methods = [method for method in study.methods if method[0] in (OURS, 'bitfit', CEILING)]
  task, found = study.development[-1], {}
  for name, budget in methods:
    done = study.run(Job(task, name, budget, 1e-3, CHOOSING_SEED, 1))
    found[name] = unpack(done['answers'], done['tests']).mean()
  print_result(study.name, found)


def main(study: Study, text: str | None, prepare: Callable[[str], None]) -> None:
  """Does what the command line asks for.

  Args:
    study: what is trained.
    text: of `--help`.
    prepare: makes the data from packages in a folder, which are downloaded if they are not there.
  """
  parser = make_parser(text, 'one epoch of three methods on one task; nothing is kept')
  parts = ('tables', 'prepare', 'rates', 'train', 'seconds')
  parser.add_argument('part', nargs='?', choices=parts, default='tables')
  parser.add_argument('--packages', default=os.path.join('runs', study.name, 'packages'))
  parser.add_argument('--results', default=study.results, help='folder of results')
  parser.add_argument('--pictures', default='notebooks/pictures', help='folder of the pictures')
  given = parser.parse_args()
  if given.quick:
    quick(study)
  elif given.part == 'prepare':
    prepare(given.packages)
  elif given.part == 'rates':
    choose_rates(study, given.results)
  elif given.part == 'train':
    run_jobs(study.jobs(study.final), given.results, study.run)
  elif given.part == 'seconds':
    time_steps(study, given.results)
  else:
    print_and_draw(study, given.results, given.pictures)
