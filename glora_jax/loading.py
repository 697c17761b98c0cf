"""One call from an adapter file and a plain model to an adapted one."""

from __future__ import annotations

import sys
from typing import Any

import glora_jax  # whose `torch` needs an extra, and is imported when it is called
from glora_jax.files import Path
from glora_jax.method.adapt import adapt, adapt_function, linen_module_of
from glora_jax.method.adapted import Adapted
from glora_jax.method.adapter_file import choices_of, load_adapter


def load(
  path: Path, model: Any, *inputs: Any, params: Any = None, strict: bool = True, **kwargs: Any
) -> tuple[Adapted, dict[str, Any]]:
  """Adapts a plain model as the model of an adapter file was, and loads the file.

  The file has the structure, and says which layers and heads it belongs to. For a model that is
  adapted already there is `load_adapter`, for NNX models `glora_jax.nnx.load`.

  Args:
    path: path of a file of `save_adapter`.
    model: a Linen model, a function `(params, *inputs)`, or a PyTorch module.
    *inputs: example inputs; only shapes and dtypes matter.
    params: the parameters of the base; those of a PyTorch module are its own.
    strict: whether another base is an error; see `load_adapter`.
    **kwargs: further arguments of the model's call, or `stacks` of `adapt_function`.

  Returns:
    (adapted, variables), as of `load_adapter`.

  Raises:
    FileNotFoundError: there is no such file.
    TypeError: the model is of another type, or `params` are missing, or given for a PyTorch module.
    ValueError: the file is damaged, or belongs to another model or base; the message says what
      differs.

  Example:
    >>> import tempfile, flax.linen as nn, glora_jax, jax, jax.numpy as jnp
    >>> model, x = nn.Dense(3), jnp.ones((1, 4))
    >>> params = model.init(jax.random.key(0), x)['params']
    >>> adapted = glora_jax.adapt(model, x, structure='lora:2')
    >>> variables = adapted.init(jax.random.key(1), params)
    >>> with tempfile.NamedTemporaryFile(suffix='.safetensors') as file:
    ...   glora_jax.save_adapter(file.name, adapted, variables)
    ...   again, loaded = glora_jax.load(file.name, model, x, params=params)
    >>> again, bool((again.apply(loaded, x) == adapted.apply(variables, x)).all())
    (<Adapted Dense: 1 layer, 14 parameters>, True)
  """
  name = type(model).__name__
  nnx, torch = (sys.modules.get(each) for each in ('flax.nnx', 'torch'))
  if isinstance(model, Adapted):
    raise TypeError('The model is adapted already; call glora_jax.load_adapter.')
  if nnx is not None and isinstance(model, nnx.Module):
    raise TypeError(f'{name} is an NNX model; call glora_jax.nnx.load(path, model, *inputs).')
  is_torch = torch is not None and isinstance(model, torch.nn.Module)
  if is_torch != (params is None):
    problem = 'has its own params; leave params= out' if is_torch else 'needs its base, params='
    raise TypeError(f'{name} {problem}.')
  choices = choices_of(path)
  if is_torch:
    adapted, params = glora_jax.torch.adapt(model, *inputs, **choices, **kwargs)
  elif linen_module_of(model) is not None:
    adapted = adapt(model, *inputs, **choices, **kwargs)
  elif callable(model):
    adapted = adapt_function(model, params, *inputs, **choices, **kwargs)
  else:
    raise TypeError(f'{name} is not a Linen model, a function or a PyTorch module.')
  return load_adapter(path, adapted, params, strict=strict)
