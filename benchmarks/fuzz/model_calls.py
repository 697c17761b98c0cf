"""Calls that need a model, its weights or a training: reading, refitting, writing, allocating."""

import os
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

import glora_jax
from benchmarks.fuzz.calling import Call
from benchmarks.fuzz.checkpoints import METADATA, originals, require_params
from benchmarks.fuzz.drawing import budgets, codes, counts, flags, images, near, rates
from benchmarks.fuzz.models import dense, vit
from benchmarks.fuzz.oracle import Fault, same
from benchmarks.fuzz.place import Place
from glora_jax import Recipe, Training
from glora_jax.models import weights

sizes = near(st.sampled_from([1, 2, 4, 8, 16, 32, 12, (8, 16), (8, 8), [4, 8], (8,), 8.0]))
vit_fields = st.fixed_dictionaries(
  {},
  optional={
    'num_classes': near(counts),
    'patch_size': near(counts),
    'depth': near(counts),
    'num_heads': near(st.sampled_from([1, 2, 3, 4])),
    'pool': near(st.sampled_from(['token', 'gap', 'token+gap', 'x'])),
    'class_token': near(flags),
    'layer_scale': near(rates),
    'drop_path': near(rates),
    'norm_eps': near(st.sampled_from([1e-6, 1e-5, 0, 1])),
    'activation': near(st.sampled_from(['gelu', 'gelu_tanh', 'relu'])),
    'dtype': near(st.sampled_from([None, 'float32', 'bfloat16', 'int8', 'x'])),
    'remat': near(st.sampled_from([None, 'dots_saveable', 'x'])),
    'unroll': near(counts),
  },
)
facts = st.fixed_dictionaries(
  {'image_size': st.sampled_from([*[8] * 10, 4, 16, None, 'x', -1, [8, 8], 8.0])},
  optional={
    'normalization': near(st.sampled_from(['unit', ([0.5] * 3, [0.5] * 3)]), 10),
    'classes': near(st.sampled_from([*[list('abcde')] * 6, list('ab'), 'abcde', [1] * 5, []]), 10),
    'resize': near(st.sampled_from(['crop', 'squash']), 10),
    'note': st.sampled_from(['x', 1, None, [1], {'a': 1}]),
  },
)


def _load(place: Place, fields: dict[str, Any]) -> list:
  model, params, metadata = weights.load(originals(place.path('shared'))[0], **fields)
  require_params(model, params, metadata)
  return [str(model), params, metadata]


def _refit(**sizes: Any) -> list:
  model, params, metadata = weights.refit(*vit(), METADATA, **sizes)
  require_params(model, params, metadata)
  return [str(model), params, metadata]


def _save(place: Place, name: str, metadata: dict[str, Any], odd: str, format: Any) -> list:
  """Writes a checkpoint into the workdir, and reads it again."""
  model, params = vit()
  path = os.path.join(place.workdir, name)
  weights.save(path, model, _odd_params(params, odd), metadata, format)
  again = weights.load(path, num_heads=model.num_heads)
  if not same(again.params, params):
    raise Fault(f'read again the parameters are others, with {odd or "right ones"}')
  return [str(again.model), again.params]


def _odd_params(params: Any, odd: str) -> Any:
  """Parameters with one that is missing, of another shape or type, or not finite."""
  bias = params['head']['bias']
  values = {
    'nan': np.full_like(bias, np.nan),
    'shape': bias[:2],
    'type': bias.astype(int),
    'text': 'x',
    'none': None,
  }
  if odd == 'missing':
    return {name: value for name, value in params.items() if name != 'head'}
  if odd not in values:
    return params if odd != 'empty' else {}
  return {**params, 'head': {**params['head'], 'bias': values[odd]}}


def _init(odd: str) -> Any:
  adapted, variables, _, _ = dense()
  kernel = variables['params']['kernel']
  params = {
    '': variables['params'],
    'empty': {},
    'none': None,
    'missing': {'kernel': kernel},
    'shape': {'kernel': kernel.T, 'bias': np.zeros(3, np.float32)},
    'text': {'kernel': 'x', 'bias': np.zeros(3, np.float32)},
    'more': {**variables['params'], 'x': kernel},
    'list': [kernel],
  }
  return adapted.init(jax.random.key(0), params[odd])


def _summary(genome: Any) -> str:
  return dense().adapted.summary(genome)


def _save_adapter(place: Place, genome: Any, metadata: dict[str, Any]) -> list:
  adapted, variables, _, _ = dense()
  os.makedirs(place.workdir, exist_ok=True)
  path = os.path.join(place.workdir, 'adapter.safetensors')
  try:
    glora_jax.save_adapter(path, adapted, variables, genome, **metadata)
  except ValueError:
    os.rmdir(place.workdir)  # which is not empty where something was written
    raise
  _, read = glora_jax.load_adapter(path, adapted, variables['params'])
  if not np.array_equal(read, glora_jax.canonicalize(adapted.spec, genome)):
    raise Fault('read again the genome is another')
  return [read]


def _loss(forward: Any, batch: Any, key: jax.Array) -> jax.Array:
  del key
  inputs, labels = batch
  return optax.softmax_cross_entropy_with_integer_labels(forward(inputs), labels).mean()


def _allocate(number: int, **options: Any) -> list:
  adapted, variables, _, inputs = dense()
  batches = [(inputs + index, jnp.array([0, index % 3])) for index in range(number)]
  allocation = glora_jax.allocate(
    adapted, variables, _loss, batches, key=jax.random.key(0), progress=False, **options
  )
  budget = options.get('budget')
  if budget is not None and allocation.count_params() > budget:
    raise Fault(f'{allocation.count_params()} parameters of {budget}')
  return [allocation.genome, allocation.count_params()]


def _train_many(images: Any, labels: Any, rate: Any, **fields: Any) -> list:
  recipe = Recipe(**{'epochs': 1, 'batch_size': 2, 'warmup_epochs': 0, **fields})
  runs = [Training(_squares, {'slope': jnp.zeros(4)}, {}, jax.random.key(0), rate=rate)]
  states = glora_jax.train_many(runs, images, labels, recipe, progress=False)
  return [np.asarray(state.trainable['slope']) for state in states]


def _squares(trainable: Any, frozen: Any, images: Any, labels: Any, key: Any) -> tuple:
  del frozen, key
  return jnp.mean((images @ trainable['slope'] - labels) ** 2), {}


def _best(**options: Any) -> np.ndarray:
  spec = dense().adapted.spec
  genomes = glora_jax.random_genomes(np.random.default_rng(0), spec, 5)
  archive = glora_jax.Archive.empty(spec).extended(genomes, range(5), np.arange(5.0), 0)
  return archive.best(spec=spec, **options)


CALLS: dict[str, Call] = {
  'load': Call(_load, st.fixed_dictionaries({'fields': vit_fields}), weight=4, has_files=True),
  'refit': Call(
    _refit,
    st.fixed_dictionaries(
      {}, optional={'num_classes': near(counts), 'image_size': sizes, 'patch_size': near(counts)}
    ),
    weight=2,
  ),
  'save': Call(
    _save,
    st.fixed_dictionaries(
      {
        'name': st.sampled_from(['x.safetensors', 'x.npz', 'x', 'a/b/x', '.safetensors', 'x.pth']),
        'metadata': facts,
        'odd': st.sampled_from([*[''] * 20, 'nan', 'shape', 'type', 'missing', 'empty', 'text']),
        'format': near(st.sampled_from([None, 'timm', 'hf_vit', 'vit_jax']), 10),
      }
    ),
    weight=3,
    has_files=True,
  ),
  'init': Call(
    _init,
    st.fixed_dictionaries(
      {'odd': st.sampled_from(['', 'empty', 'none', 'missing', 'shape', 'text', 'more', 'list'])}
    ),
    weight=0.5,
  ),
  'summary': Call(_summary, st.fixed_dictionaries({'genome': codes(dense().adapted.spec)})),
  'save_adapter': Call(
    _save_adapter,
    st.fixed_dictionaries(
      {
        'genome': codes(dense().adapted.spec),
        'metadata': st.dictionaries(
          st.sampled_from(['note', 'spec', 'kind', 'format', 'layers', 'base', 'x']),
          st.sampled_from(['x', 1, None, [1], {'a': 1}, 0.5]),
          max_size=2,
        ),
      }
    ),
    weight=2,
    has_files=True,
  ),
  'allocate': Call(
    _allocate,
    st.fixed_dictionaries(
      {'number': st.sampled_from([4, 4, 4, 1, 0])},
      optional={
        'budget': budgets,
        'folds': near(st.sampled_from([2, 2, 3, 1]), 8),
        'max_rank': near(counts, 8),
        'value': near(st.sampled_from(['squared', 'sign']), 8),
        'rho': near(rates, 8),
        'floor': near(flags, 8),
        'mesh': near(st.just(None), 8),
        'ahead': near(st.just(None), 8),
        'prior': near(st.just(None), 8),
      },
    ),
    weight=0.5,
  ),
  'train_many': Call(
    _train_many,
    st.fixed_dictionaries(
      {
        'images': images,
        'labels': near(st.sampled_from([np.array([0.0, 2.0]), np.zeros(3), np.zeros(0)])),
        'rate': near(st.sampled_from([None, 0.1, 0.0, -1.0])),
      },
      optional={'epochs': near(counts), 'batch_size': near(counts), 'accumulate': near(counts)},
    ),
    weight=0.3,
  ),
  'Archive.best': Call(
    _best,
    st.fixed_dictionaries(
      {}, optional={'fitness': near(st.sampled_from(['accuracy', 'loss', 'x'])), 'budget': budgets}
    ),
  ),
}
