"""A linear probe: trains only the head of an adapted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from glora_jax.checks import validate
from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import smallest_genome
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.training.batches import ImageStream
from glora_jax.training.loop import fit
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe


def warm_head(
  adapted: Adapted,
  variables: Mapping[str, Any],
  images: jax.Array | np.ndarray | ImageStream,
  labels: jax.Array | np.ndarray,
  recipe: Recipe,
  key: jax.Array,
  *,
  preprocess: Preprocess | None = None,
  mesh: jax.sharding.Mesh | None = None,
  progress: bool = True,
  **apply_kwargs: Any,
) -> dict[str, Any]:
  """Trains only the head, as `allocate` needs it: a linear probe for a few epochs.

  The frozen body runs in every step, and nothing is differentiated but the head.

  Args:
    adapted: the adapted model.
    variables: its variables, whose supports are used only where every structure has some.
    images: the whole training set on the device, [n, ...], or a stream of it; see `fit`.
    labels: int [n].
    recipe: how to train; a few epochs at about twice the later learning rate are enough.
    key: random key of the order of the images.
    preprocess: `(images, None) -> inputs` of the model, without augmentation; None for images that
      are inputs already.
    mesh: devices; see `fit`.
    progress: whether to show a bar.
    **apply_kwargs: further arguments of the model, except those that make it random.

  Returns:
    The variables with the trained head.

  Raises:
    TypeError: `adapted` is not an adapted model, `preprocess` not a function, or as in `fit`.
    ValueError: the model has no head, the variables are those of another, or as in `fit`.
    NonFiniteLossError: as in `fit`.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import glora_jax
    >>> class Mlp(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.Dense(2, name='head')(nn.relu(nn.Dense(8, name='hidden')(x)))
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> labels = (x[:, 0] > 0).astype(int)
    >>> adapted = glora_jax.adapt(Mlp(), x)
    >>> variables = adapted.init(jax.random.key(1), Mlp().init(jax.random.key(2), x)['params'])
    >>> warm = glora_jax.warm_head(
    ...   adapted,
    ...   variables,
    ...   x,
    ...   labels,
    ...   glora_jax.Recipe(epochs=20, batch_size=16, learning_rate=0.1, warmup_epochs=1),
    ...   jax.random.key(3),
    ...   progress=False,
    ... )
    >>> logits = Mlp().apply({'params': warm['params']}, x)
    >>> bool((logits.argmax(-1) == labels).mean() > 0.9)
    True
  """
  validate(adapted, Adapted, 'adapted')
  if not adapted._places.head_paths:
    raise ValueError(
      'The adapted model has no head (heads=None), so there is nothing to train alone; pass '
      'heads= to adapt.'
    )
  preprocess = unchanged if preprocess is None else preprocess
  validate(preprocess, Callable, 'preprocess')
  probe = adapted.fix(smallest_genome(adapted.spec))
  loss = make_loss(probe, lambda images, key: preprocess(images, None), **apply_kwargs)
  trainable, frozen = probe.split(variables, supports=False)
  data = images, labels, recipe, key
  state = fit(loss, trainable, frozen, *data, title='head', progress=progress, mesh=mesh)
  return {**variables, 'params': probe.join(state.trainable, frozen)['params']}
