"""The stages that train: supernet, baselines, finetuning."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.files import read_json, write_json
from glora_jax.method import presets
from glora_jax.runs.config import finetune_recipe
from glora_jax.runs.monitoring import Metrics, profiled
from glora_jax.runs.run import Run
from glora_jax.runs.workdir import Stopped
from glora_jax.training import loop
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import NonFiniteLossError, TrainState
from glora_jax.training.losses import Consistency, Sampling, subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe


def train(
  this: Run,
  name: str,
  recipe: Recipe,
  purpose: int,
  variables: Any,
  *,
  on: str,
  genome: np.ndarray | None = None,
  stop_epoch: int | None = None,
  on_epoch: Callable[[Any], dict[str, float]] | None = None,
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
    loss_fn = supernet_loss(
      learner, this.augmented, sample, distillation=sampling.distillation, **options
    )
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
      template = TrainState(
        *meshes.replicate(this.mesh, template[:2]), 0
      )  # says where a restored state goes
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
      state = loop.fit(
        loss_fn,
        trainable,
        frozen,
        images,
        labels,
        recipe,
        this.key(purpose),
        state=state,
        stop_epoch=stop_epoch,
        steps_per_dispatch=per_epoch if on_epoch else 50,
        on_dispatch=on_dispatch,
        title=name,
        mesh=this.mesh,
      )
    except NonFiniteLossError as error:
      checkpoints.save(error.state)
      raise
    checkpoints.save(state)
  return learner.join(state.trainable, frozen)


def train_supernet(this: Run) -> Any:
  """Trains all forms of all supports together, fresh genomes for every step."""
  return train(
    this, 'supernet', Recipe(**this.config.supernet), 1, this.variables, on=this.train_split
  )


def train_baselines(this: Run) -> dict[str, tuple[Any, np.ndarray]]:
  """The linear probe and the presets that the config asks for, each trained alone: name -> (variables, genome)."""
  trained = {}
  for name in ('linear', *(name for name in this.config.presets if name != 'linear')):
    genome = presets.preset(this.adapted.spec, name)
    variables = train(
      this,
      os.path.join('baselines', name),
      Recipe(**this.config.supernet),
      2,
      this.variables,
      on=this.train_split,
      genome=genome,
    )
    trained[name] = variables, genome
  return trained


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
