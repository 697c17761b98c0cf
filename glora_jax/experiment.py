"""One run, stage by stage: pretrained params -> adapt -> supernet -> baselines -> search -> finetuning -> test -> fold, report.

Every stage leaves its result in the workdir and is skipped when it is there, so the same command resumes. The stage `test`
runs last: it evaluates a list that was frozen to disk before, and only the report reads what it finds.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from glora_jax import mesh as meshes
from glora_jax import report, search, space, training
from glora_jax.checkpoint import TrainingCheckpoints, save_adapter
from glora_jax.config import finetune_recipe
from glora_jax.data import pipeline
from glora_jax.files import read_arrays, read_json, write_arrays, write_json
from glora_jax.guidance import make_guide
from glora_jax.models import weights
from glora_jax.run import Run, Stopped, carry_out
from glora_jax.scoring import Predictions, make_image_scorer
from glora_jax.stopping import hardest_first, make_stopping_scorer
from glora_jax.supernet import Consistency, Sampling, subnet_loss, supernet_loss
from glora_jax.training import NonFiniteLossError, Recipe, TrainState
from glora_jax.watch import Metrics, profiled

log = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
  """Runs, or resumes, what a config describes.

  Args:
    config: with the fields of `config.default_config`.
    workdir: folder for everything that is written; one config each.
    stop: asked after every dispatch and generation and before every stage; where it says True, everything is saved and the run
      ends. No signal handlers are installed here.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError, OSError: a wrong field, file or workdir, or one in use; the sentence names it.
    NonFiniteLossError: training diverged; the last good state is in the workdir.
    Stopped: `stop` said so.
  """
  return carry_out(config, workdir, stop, _run_stages)


def _run_stages(this):
  config = this.config
  with this.stage('supernet'):
    trained = train_supernet(this)
  with this.stage('baselines'):
    baselines = train_baselines(this)
  with this.stage('search'):
    archive = run_search(this, trained, budget=space.check_budget(config.budget), key=this.key(3))
  with this.stage('finetune'):
    candidates = {**baselines, **finetune(this, trained, archive.best(config.search.fitness))}
  with this.stage('test'):
    entries, answers = test(this, candidates)
  with this.stage('report'):
    result = write_results(this, candidates['winner'][0], entries, answers, archive, trained)
  return result


def train(
    this: Run, name: str, recipe: Recipe, purpose: int, variables: Any, *, on: str, genome: np.ndarray | None = None,
    stop_epoch: int | None = None, on_epoch: Callable[[Any], dict[str, float]] | None = None,
) -> Any:
  """One training run with its checkpoints in the folder `name`, resumed from the newest of them.

  Args:
    this: the run.
    name: of the folder in the workdir, and of the stage in `metrics.jsonl`.
    recipe, stop_epoch: see `training.fit`.
    purpose: number that sets this training's random key apart from the others'.
    variables: to start from.
    on: split to train on.
    genome: of the one subnet that is trained; None trains the supernet.
    on_epoch: called with the variables after every epoch; what it returns goes into `metrics.jsonl`.

  Returns:
    The trained variables.
  """
  options = {'mix': this.mix, 'consistency': Consistency(**this.config.consistency), 'train': True}
  if genome is None:
    learner, sampling = this.adapted, Sampling(**this.config.sampling)
    sample = lambda key: sampling.draw(key, this.adapted.spec)
    loss_fn = supernet_loss(learner, this.augmented, sample, distillation=sampling.distillation, **options)
  else:
    learner = this.adapted.fix(genome)
    loss_fn = subnet_loss(learner, this.augmented, **options)
  trainable, frozen = learner.split(variables)
  images, labels = this.data(on)
  per_epoch = recipe.steps_per_epoch(len(labels))
  traced = profiled(this.path('profile'), this.config.watch.profile == name.split('/')[0])
  with TrainingCheckpoints(this.path(name)) as checkpoints, traced as dispatched:
    template = TrainState(trainable, recipe.optimizer(len(labels)).init(trainable), 0)
    if this.mesh is not None:
      template = TrainState(*meshes.replicate(this.mesh, template[:2]), 0)  # says where a restored state goes
    state = checkpoints.latest(template)
    saved = state.step if state else 0
    board = this.path('tensorboard') if this.config.watch.tensorboard else None
    metrics = Metrics(this.path('metrics.jsonl'), name, saved, board)

    def on_dispatch(state, means):
      nonlocal saved
      extra = on_epoch(learner.join(state.trainable, frozen)) if on_epoch else {}
      metrics.write(state.step, {'epoch': state.step / per_epoch, **means, **extra})
      dispatched()
      stop = this.stop()
      if stop or state.step - saved >= this.config.checkpoint_epochs * per_epoch:
        checkpoints.save(state)
        saved = state.step
      if stop:
        checkpoints.wait()
        raise Stopped(f'{name} at step {state.step}', this.workdir)

    try:
      state = training.fit(
          loss_fn, trainable, frozen, images, labels, recipe, this.key(purpose), state=state, stop_epoch=stop_epoch,
          steps_per_dispatch=per_epoch if on_epoch else 50, on_dispatch=on_dispatch, title=name,
          mesh=this.mesh)
    except NonFiniteLossError as error:
      checkpoints.save(error.state)
      raise
    checkpoints.save(state)
  return learner.join(state.trainable, frozen)


def train_supernet(this: Run) -> Any:
  """Trains all forms of all supports together, fresh genomes for every step."""
  return train(this, 'supernet', Recipe(**this.config.supernet), 1, this.variables, on=this.train_split)


def train_baselines(this: Run) -> dict[str, tuple[Any, np.ndarray]]:
  """The linear probe and the presets that the config asks for, each trained alone: name -> (variables, genome)."""
  trained = {}
  for name in ('linear', *(name for name in this.config.presets if name != 'linear')):
    genome = space.preset(this.adapted.spec, name)
    variables = train(this, os.path.join('baselines', name), Recipe(**this.config.supernet), 2, this.variables, on=this.train_split,
                      genome=genome)
    trained[name] = variables, genome
  return trained


def run_search(this: Run, variables: Any, *, budget: int | None, key: jax.Array, folder: str = 'search') -> search.Archive:
  """The search on the search split, with the supernet's weights; its archive is saved in the folder after every generation."""
  settings, path, split = search.Evolution(**this.config.search), this.path(folder, 'archive.npz'), this.search_split
  os.makedirs(this.path(folder), exist_ok=True)
  archive = search.Archive(**read_arrays(path)) if os.path.exists(path) else None
  score = lambda genomes: this.score(variables, genomes, split)
  images, labels = this.data(split)
  resident = not isinstance(images, pipeline.Stream)
  options = {}
  if settings.stop_early and settings.mode == 'paper' and resident and this.mesh is None:  # a mesh scores all to the end, and selects the same
    score, options['stopping_score'] = _stopping(this, variables, settings.fitness, this.path(folder, 'order.npz'))
  if settings.mode == 'guided':
    if not resident:
      raise ValueError("search.mode='guided' takes the gradient on resident images; raise data.max_resident, or take another mode.")
    guide = make_guide(this.adapted, this.preprocess, fitness=settings.fitness)
    options['guide'] = lambda genome: meshes.on_host(guide(variables, jnp.asarray(genome), images, labels))
  if archive:
    log.info('search: resumed after generation %d', archive.generation[-1])
  with profiled(this.path('profile'), this.config.watch.profile == 'search') as dispatched:

    def on_generation(archive):
      if meshes.primary():
        write_arrays(path, archive.arrays())
      dispatched()
      if this.stop():
        raise Stopped(f'search after generation {archive.generation[-1]}', this.workdir)

    return search.evolve(
        this.adapted.spec, score, key, settings, budget=budget, archive=archive, on_generation=on_generation,
        progress=meshes.primary(), **options)


def _stopping(this, variables, fitness, path):
  """(score of the first generation, stopping score of the others), on the images that were hardest for the first, first."""
  images, labels = this.data(this.search_split)
  whole, stopping = make_image_scorer(this.adapted, this.preprocess), make_stopping_scorer(this.adapted, this.preprocess, fitness=fitness)

  def first(genomes):
    right, losses = (np.asarray(x) for x in whole(variables, genomes, images, labels))
    write_arrays(path, {'order': hardest_first(losses if fitness == 'loss' else ~right)})
    return right.sum(1), losses.sum(1)

  @functools.cache
  def ordered():
    order = read_arrays(path)['order']
    return images[order], labels[order]

  return first, lambda genomes, valid, parents: stopping(variables, genomes, *ordered(), valid, parents)


def finetune(this: Run, variables: Any, genome: np.ndarray) -> dict[str, tuple[Any, np.ndarray]]:
  """Trains the winner on from the supernet's weights: name -> (variables, genome), before ('winner_supernet') and after."""
  recipe = finetune_recipe(this.config)
  if this.config.protocol == 'paper' or not recipe.epochs:
    return {'winner_supernet': (variables, genome), 'winner': (variables, genome)}
  settings = {'genome': genome, 'on': 'train'}
  stop_epoch = None
  if this.config.finetune.on == 'train+val':
    path = this.path('finetune_epochs.json')
    if not os.path.exists(path):
      num_images = len(this.data('val').labels)

      def on_epoch(current):
        correct, loss = (float(x[0]) for x in this.score(current, jnp.asarray(genome)[None], 'val'))
        return {'val_accuracy': correct / num_images, 'val_loss': loss / num_images}

      train(this, 'finetune_choice', recipe, 4, variables, **settings, on_epoch=on_epoch)
      with meshes.primary_first('finetune_epochs'):
        if meshes.primary():
          with open(this.path('metrics.jsonl')) as file:
            curve = [e for e in map(json.loads, file) if e['stage'] == 'finetune_choice']
          best = max(curve, key=lambda e: (e['val_accuracy'], -e['val_loss']))
          write_json(path, {'epochs': round(best['epoch']), 'val_accuracy': best['val_accuracy']})
    stop_epoch = read_json(path)['epochs']
    settings['on'] = 'train+val'
  tuned = train(this, 'finetune', recipe, 5, variables, stop_epoch=stop_epoch, **settings)
  return {'winner_supernet': (variables, genome), 'winner': (tuned, genome)}


def test(this: Run, candidates: dict[str, tuple[Any, np.ndarray]]) -> tuple[dict[str, dict[str, Any]], Predictions]:
  """Freezes the list of subnets with their weights to disk, and only then evaluates it on the test split.

  Returns:
    (entries of the list with their test accuracies, what the winner answered for each test image).
  """
  seen = this.config.finetune.on == 'train+val' and this.config.protocol == 'honest' and this.config.finetune.epochs > 0
  entries = {}
  for name, (variables, genome) in candidates.items():
    trained_on_val = this.config.protocol == 'paper' or (name == 'winner' and seen)
    entries[name] = {
        'params': this.adapted.count_params(genome),
        'val_accuracy': None if trained_on_val else this.accuracy(variables, genome, 'val'),
        'genome': genome.tolist(),
        'weights': weights.fingerprint(this.adapted.split(variables)[0]),
    }
  freeze(this, entries)
  labels, answers = np.asarray(this.data('test').labels), {}
  for name, entry in entries.items():
    answers[name] = this.predict(*candidates[name], 'test')
    entry['test_accuracy'] = int((answers[name].classes == labels).sum()) / len(labels)
    if others := this.task.tests[1:]:
      entry['other_test_accuracies'] = {split: this.accuracy(*candidates[name], split) for split in others}
  return entries, answers['winner']


def freeze(this: Run, entries: dict[str, Any]) -> None:
  """Writes the list of what will be tested, with the fingerprints of its weights, before the test images are read.

  Raises:
    ValueError: another list was frozen before.
  """
  path = this.path('test_list.json')
  if os.path.exists(path) and read_json(path) != entries:
    raise ValueError(f'{path} was frozen with other subnets than this run has now; use a new workdir.')
  if meshes.primary():
    write_json(path, entries)


def write_results(
    this: Run, variables: Any, entries: dict[str, dict[str, Any]], answers: Predictions, archive: search.Archive, trained: Any,
) -> dict[str, Any]:
  """Folds the winner, and writes adapter, plain checkpoint, pictures and report; returns what `result.json` will hold."""
  config, adapted = this.config, this.adapted
  genome = np.array(entries['winner']['genome'], np.int8)
  folded = jax.jit(adapted.fold)(variables, genome)
  whole, folded = (variables, folded) if this.mesh is None else meshes.on_host((variables, folded))
  with meshes.primary_first('folded'):
    if meshes.primary():
      save_adapter(this.path('adapter.safetensors'), adapted, whole, genome, task=this.task.name)
      write_json(this.path('genome.json'), space.genome_to_json(adapted.spec, genome))
      remembered = {**{name: this.metadata[name] for name in ('image_size', 'normalization')}, 'resize': config.data.resize,
                    'classes': this.task.classes}
      weights.save(this.path('folded'), adapted.model, folded, remembered, this.metadata.get('source'))
  plain, params, _ = weights.load(this.path('folded'))
  images = this.data('train').images
  inputs = this.preprocess(next(images.blocks(256)).images if isinstance(images, pipeline.Stream) else images[:256])
  with_supports = jax.jit(lambda v, x: adapted.apply(v, x, genome=genome))(variables, inputs)
  difference = jnp.max(jnp.abs(with_supports - jax.jit(lambda p, x: plain.apply({'params': p}, x))(params, inputs)))

  num_images = {split: len(this.data(split).labels) for split in (this.train_split, this.search_split, 'test')}
  searched = num_images[this.search_split]
  entries = {name: {k: v for k, v in entry.items() if k != 'weights' and (k != 'genome' or name == 'winner')}
             for name, entry in entries.items()}
  inherited = {name: {'params': adapted.count_params(preset), 'accuracy': this.accuracy(trained, preset, this.search_split)}
               for name, preset in space.presets(adapted.spec).items()}
  result = {
      'task': this.task.name,
      'protocol': config.protocol,
      'seed': config.seed,
      'budget': space.check_budget(config.budget),
      'linear': entries.pop('linear'),
      'winner_supernet': entries.pop('winner_supernet'),
      'winner': entries.pop('winner'),
      'presets': entries,
      'finetuned': config.protocol == 'honest' and config.finetune.epochs > 0,
      'evaluations': len(archive),
      'stopped_early': int((~archive.exact).sum()),
      'hypervolume': [round(volume, 5) for volume in search.hypervolume_by_generation(archive, adapted.spec, searched)],
      'fold_max_abs_diff': float(difference),
      'data': {'origin': this.task.origin, 'notes': list(this.task.notes), 'resize': config.data.resize, 'images': num_images},
      'normalization': this.metadata['normalization'],
      'weights': config.model.weights,
      'merge': adapted.merge,
      'seconds': dict(this.seconds),
  }
  if meshes.primary():
    outcome = report.Outcome(np.asarray(this.data('test').labels), *answers, functools.partial(this.pixels, 'test'))
    report.write(this.workdir, result, adapted.spec, archive, this.task, config.search.fitness, inherited, outcome)
  return result


def summary(result: dict[str, Any], workdir: str) -> str:
  """What the command line prints at the end."""
  return f'{report.table(result)}\n\n{workdir}/report.md has the whole story, {workdir}/folded the plain model.'
