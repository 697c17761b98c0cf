"""Small decoders with a table that is also their head, by Linen, by NNX and as functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from trees import normal

V, D = 41, 6
KEY = jax.random.key(0)
TOKENS = jnp.array([[1, 2], [40, 1]])
PARAMS = {'table': normal(V, D), 'w': normal(D, D, seed=1)}


class Decoder(nn.Module):
  """Its table is also the head."""

  words: int = V

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(self.words, D, name='embed')
    x = nn.Dense(D, name='mlp')(embed(tokens))
    return nn.Dense(2, name='head')(x), embed.attend(jnp.tanh(x))


class Live(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.embed, self.mlp = nnx.Embed(V, D, rngs=rngs), nnx.Linear(D, D, rngs=rngs)

  def __call__(self, tokens):
    return self.embed.attend(jnp.tanh(self.mlp(self.embed(tokens))))


def tied(params, tokens):
  rows = jax.vmap(jax.vmap(lambda token: params['table'][token]))(tokens)
  return jnp.einsum('btd,vd->vbt', jnp.tanh(rows @ params['w']), params['table'])


def decoded(params, tokens):
  """One token at a time, each a number."""

  def step(state, token):
    state = jnp.tanh((params['table'][token] + state) @ params['w'])
    return state, params['table'] @ state

  return jax.lax.scan(step, jnp.zeros(D), tokens.ravel())[1]
