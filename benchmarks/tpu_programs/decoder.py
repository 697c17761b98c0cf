"""A decoder in the shapes of Llama (arXiv 2302.13971), as a function of parameters; its training.

Only shapes are needed to compile it: there are no weights.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import glora_jax
from benchmarks.tpu_programs.programs import Program
from glora_jax import mesh as meshes
from glora_jax.training.loop import make_steps

Shape = jax.ShapeDtypeStruct
EPSILON = 1e-5
ROTATION = 10_000.0
RANK = 8
TILE = 64  # inputs with one scale
STEPS = 4  # of a program


class Size(NamedTuple):
  """How large a decoder is.

  Attributes:
    width: numbers of a token.
    depth: blocks.
    heads: heads of attention, each of `width / heads` numbers.
    hidden: width of the MLPs' hidden layer.
    vocabulary: tokens that there are.
    length: tokens of a text.
  """

  width: int
  depth: int
  heads: int
  hidden: int
  vocabulary: int
  length: int


SIZES = {
  'decoder-1B': Size(2048, 22, 32, 5632, 32_000, 2048),
  'decoder-7B': Size(4096, 32, 32, 11_008, 32_000, 2048),
  'decoder-tiny': Size(512, 4, 4, 1376, 4096, 256),
}


def shapes(size: Size, dtype: Any = jnp.bfloat16) -> dict[str, Any]:
  """Shapes of the parameters; blocks are stacked on their first axis."""
  width, hidden = size.width, size.hidden
  kernels = {
    **dict.fromkeys(('query', 'key', 'value', 'out'), (width, width)),
    **dict.fromkeys(('gate', 'up'), (width, hidden)),
    'down': (hidden, width),
    **dict.fromkeys(('attention_norm', 'mlp_norm'), (width,)),
  }
  blocks = {name: Shape((size.depth, *shape), dtype) for name, shape in kernels.items()}
  return {
    'embed': Shape((size.vocabulary, width), dtype),
    'blocks': blocks,
    'norm': Shape((width,), dtype),
    'lm_head': Shape((width, size.vocabulary), dtype),
  }


def decoder(params: Any, tokens: jax.Array, heads: int) -> jax.Array:
  """Logits of the next tokens, float32 [text, token, vocabulary], of tokens int [text, token].

  The blocks are scanned over, and computed again on the way back.
  """
  block = jax.checkpoint(functools.partial(_block, heads=heads), prevent_cse=False)

  def add_block(x, kernels):
    return block(x, kernels), None

  x, _ = jax.lax.scan(add_block, params['embed'][tokens], params['blocks'])
  x = _normalized(x, params['norm'])
  return jnp.einsum('btd,dv->btv', x, params['lm_head'], preferred_element_type=jnp.float32)


def _block(x: jax.Array, kernels: Any, heads: int) -> jax.Array:
  y = _normalized(x, kernels['attention_norm'])
  query, key, value = (
    (y @ kernels[name]).reshape(*y.shape[:2], heads, -1) for name in ('query', 'key', 'value')
  )
  y = jax.nn.dot_product_attention(_rotated(query), _rotated(key), value, is_causal=True)
  x = x + y.reshape(x.shape) @ kernels['out']
  y = _normalized(x, kernels['mlp_norm'])
  return x + (jax.nn.silu(y @ kernels['gate']) * (y @ kernels['up'])) @ kernels['down']


def _normalized(x: jax.Array, scale: jax.Array) -> jax.Array:
  """RMSNorm, computed in float32."""
  wide = x.astype(jnp.float32)
  mean = jnp.square(wide).mean(-1, keepdims=True)
  return (wide * jax.lax.rsqrt(mean + EPSILON)).astype(x.dtype) * scale


def _rotated(x: jax.Array) -> jax.Array:
  """Rotary position embedding of [text, token, head, number]."""
  half = x.shape[-1] // 2
  rates = ROTATION ** (-jnp.arange(half) / half)
  angles = (jnp.arange(x.shape[1])[:, None] * rates)[:, None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def quantize(params: dict[str, Any], weights: str) -> dict[str, Any]:
  """Shapes of parameters whose kernels in blocks are quantized, with a scale for each 64 inputs."""
  import qwix  # which other programs do not need

  def convert(kernel: Shape) -> Any:
    if len(kernel.shape) < 3:  # the norms'
      return kernel
    how = {'qtype': weights, 'channelwise_axes': (0, 2), 'tiled_axes': {1: TILE}}
    return jax.eval_shape(functools.partial(qwix.quantize, **how), kernel)

  return {**params, 'blocks': jax.tree.map(convert, params['blocks'])}


def training(
  name: str, size: Size, batch: int, mesh: jax.sharding.Mesh, base: str, weights: str = 'bfloat16'
) -> Program:
  """Some steps on the loss of the next tokens, which are the labels.

  Args:
    name: 'supernet', or 'subnet' for LoRA alone.
    size: of the decoder.
    batch: texts of a step, on all devices together.
    mesh: the devices.
    base: 'sharded' for frozen weights that are; 'replicated' for whole ones on every device.
    weights: the type of the frozen kernels in blocks, 'bfloat16' or one of qwix.
  """
  params, tokens = shapes(size), Shape((1, size.length), jnp.int32)
  function = functools.partial(decoder, heads=size.heads)
  space = glora_jax.SearchSpace(ranks=(RANK,))
  adapted = glora_jax.adapt_function(
    function, params, tokens, space=space, select='blocks', heads=None
  )
  if weights != 'bfloat16':
    params = quantize(params, weights)
  variables = jax.eval_shape(adapted.init, jax.random.key(0), params)
  if base == 'sharded':
    adapted, variables = glora_jax.shard(adapted, variables, mesh)
  else:
    variables = meshes.replicate(mesh, variables)
  learner = adapted if name == 'supernet' else adapted.fix(f'lora:{RANK}')

  def loss_fn(trainable, frozen, batch, key):
    tokens, labels = batch
    genome = {}
    if learner.genome is None:
      genome['genome'] = glora_jax.sample_genome(key, adapted.spec)
    logits = learner.apply(learner.join(trainable, frozen), tokens, **genome)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

  trainable, frozen = jax.eval_shape(learner.split, variables)
  optimizer = optax.adamw(1e-3)
  texts = Shape((STEPS, batch, size.length), jnp.int32, sharding=meshes.split_over(mesh, axis=1))
  trainable, state = meshes.replicate(mesh, (trainable, jax.eval_shape(optimizer.init, trainable)))
  steps = make_steps(loss_fn, optimizer, mesh=mesh, replicated=base != 'sharded')
  key = jax.eval_shape(jax.random.key, 0)
  arguments = trainable, state, 0, frozen, (texts, texts), None, key
  return steps, arguments
