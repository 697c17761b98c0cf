"""The last stage: folds the winner, and writes what a run leaves behind."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data import pipeline
from glora_jax.files import write_json
from glora_jax.method import presets
from glora_jax.method.adapter_file import save_adapter
from glora_jax.method.genomes import check_budget, genome_to_json
from glora_jax.models import weights
from glora_jax.reports import run_report
from glora_jax.runs.run import Run
from glora_jax.search.archive import Archive, hypervolume_by_generation
from glora_jax.search.scoring import Predictions


def write_results(
  this: Run,
  variables: Any,
  entries: dict[str, dict[str, Any]],
  answers: Predictions,
  archive: Archive,
  trained: Any,
) -> dict[str, Any]:
  """Folds the winner, and writes adapter, plain checkpoint, pictures and report; returns what `result.json` will hold."""
  config, adapted = this.config, this.adapted
  genome = np.array(entries['winner']['genome'], np.int8)
  folded = jax.jit(adapted.fold)(variables, genome)
  whole, folded = (variables, folded) if this.mesh is None else meshes.on_host((variables, folded))
  with meshes.primary_first('folded'):
    if meshes.primary():
      save_adapter(this.path('adapter.safetensors'), adapted, whole, genome, task=this.task.name)
      write_json(this.path('genome.json'), genome_to_json(adapted.spec, genome))
      remembered = {
        **{name: this.metadata[name] for name in ('image_size', 'normalization')},
        'resize': config.data.resize,
        'classes': this.task.classes,
      }
      weights.save(
        this.path('folded'), adapted.model, folded, remembered, this.metadata.get('source')
      )
  plain, params, _ = weights.load(this.path('folded'))
  images = this.data('train').images
  inputs = this.preprocess(
    next(images.blocks(256)).images if isinstance(images, pipeline.Stream) else images[:256]
  )
  with_supports = jax.jit(lambda v, x: adapted.apply(v, x, genome=genome))(variables, inputs)
  difference = jnp.max(
    jnp.abs(with_supports - jax.jit(lambda p, x: plain.apply({'params': p}, x))(params, inputs))
  )

  num_images = {
    split: len(this.data(split).labels) for split in (this.train_split, this.search_split, 'test')
  }
  searched = num_images[this.search_split]
  entries = {
    name: {k: v for k, v in entry.items() if k != 'weights' and (k != 'genome' or name == 'winner')}
    for name, entry in entries.items()
  }
  inherited = {
    name: {
      'params': adapted.count_params(preset),
      'accuracy': this.accuracy(trained, preset, this.search_split),
    }
    for name, preset in presets.presets(adapted.spec).items()
  }
  result = {
    'task': this.task.name,
    'protocol': config.protocol,
    'seed': config.seed,
    'budget': check_budget(config.budget),
    'linear': entries.pop('linear'),
    'winner_supernet': entries.pop('winner_supernet'),
    'winner': entries.pop('winner'),
    'presets': entries,
    'finetuned': config.protocol == 'honest' and config.finetune.epochs > 0,
    'evaluations': len(archive),
    'stopped_early': int((~archive.exact).sum()),
    'hypervolume': [
      round(volume, 5) for volume in hypervolume_by_generation(archive, adapted.spec, searched)
    ],
    'fold_max_abs_diff': float(difference),
    'data': {
      'origin': this.task.origin,
      'notes': list(this.task.notes),
      'resize': config.data.resize,
      'images': num_images,
    },
    'normalization': this.metadata['normalization'],
    'weights': config.model.weights,
    'merge': adapted.merge,
    'seconds': dict(this.seconds),
  }
  if meshes.primary():
    outcome = run_report.Outcome(
      np.asarray(this.data('test').labels), *answers, functools.partial(this.pixels, 'test')
    )
    run_report.write(
      this.workdir,
      result,
      adapted.spec,
      archive,
      this.task,
      config.search.fitness,
      inherited,
      outcome,
    )
  return result
