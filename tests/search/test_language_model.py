"""A small decoder: a structure from one gradient of a next-token loss, folding, writing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from comparing import assert_close, random_params, random_variables
from jax.tree_util import Partial

import glora_jax

LENGTH, WIDTH, VOCABULARY = 12, 8, 128


class Decoder(nn.Module):
  decode: bool = False

  @nn.compact
  def __call__(self, tokens, start=0):
    embed = nn.Embed(VOCABULARY, WIDTH, name='embed')
    positions = self.param('positions', nn.initializers.normal(), (LENGTH, WIDTH))
    x = embed(tokens) + jax.lax.dynamic_slice_in_dim(positions, start, tokens.shape[1])
    mask = None if self.decode else nn.make_causal_mask(tokens)
    x += nn.MultiHeadDotProductAttention(2, decode=self.decode, name='attention')(x, mask=mask)
    x += nn.Dense(WIDTH, name='down')(nn.silu(nn.Dense(2 * WIDTH, name='up')(x)))
    return embed.attend(x)


def next_token_loss(forward, batch, key=None):
  logits = forward(batch[:, :-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


@jax.jit
def write(decode_step, cache, prompt):
  """The likeliest continuation of a prompt, and the logits of every step; with the cache."""

  def step(carry, position):
    cache, token = carry
    logits, new = decode_step(cache, token[None, None], position)
    given = prompt[jnp.minimum(position + 1, len(prompt) - 1)]
    token = jnp.where(position + 1 < len(prompt), given, logits[0, 0].argmax())
    return (new['cache'], token), (token, logits[0, 0])

  _, (tokens, logits) = jax.lax.scan(step, (cache, prompt[0]), jnp.arange(LENGTH - 1))
  return jnp.concatenate([prompt[:1], tokens]), logits


def plain_step(params, cache, token, position):
  variables = {'params': params, 'cache': cache}
  return Decoder(decode=True).apply(variables, token, position, mutable=['cache'])


def test_every_example_may_have_a_genome_and_a_cache_of_its_own_and_folded_it_writes_the_same():
  sample = jnp.zeros((1, LENGTH), jnp.int32)
  adapt = functools.partial(
    glora_jax.adapt, space=glora_jax.SearchSpace.distinct((1, 2)), heads=None
  )
  adapted, decoding = adapt(Decoder(), sample), adapt(Decoder(decode=True), sample[:, :1])
  assert decoding.spec == adapted.spec
  variables = random_variables(adapted, random_params(Decoder(), sample))
  batches = list(jax.random.randint(jax.random.key(0), (4, 8, LENGTH + 1), 0, VOCABULARY))
  options = {'budget': 100, 'key': jax.random.key(2), 'folds': 4, 'progress': False}
  genome = glora_jax.allocate(adapted, variables, next_token_loss, batches, **options).genome
  genomes = jnp.stack([0 * genome, genome, genome])
  prompts = jnp.stack([batches[0][0, :4], batches[0][0, :4], batches[0][1, :4]])
  shapes = jax.eval_shape(Decoder(decode=True).init, jax.random.key(0), sample)['cache']
  cache = jax.tree.map(jnp.zeros_like, shapes)

  def adapted_step(genome, cache, token, position):
    return decoding.apply(
      {**variables, 'cache': cache}, token, position, genome=genome, mutable=['cache']
    )

  _, logits = jax.vmap(lambda genome, prompt: write(Partial(adapted_step, genome), cache, prompt))(
    genomes, prompts
  )
  for genome, prompt, own in zip(genomes, prompts, logits, strict=True):
    folded = adapted.fold(variables, genome)
    written, alone = write(Partial(plain_step, folded), cache, prompt)
    assert_close(own, alone)
    whole = jax.jit(adapted.apply)(variables, written[None, :-1], genome=genome)[0]
    assert_close(alone, whole)
    assert (written[:4] == prompt).all()
    assert (written[4:] == whole.argmax(-1)[3:]).all()
  assert np.abs(logits[0] - logits[1]).max() > 1e-2
