"""Code and commands that use what a run leaves, to be pasted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from glora_jax.method.space import SearchSpace
from glora_jax.models.weights import EMBEDDED
from glora_jax.reports.findings import Findings


class Snippet(NamedTuple):
  """Something to paste.

  Attributes:
    title: what it is for.
    command: for a shell; '' where none is needed.
    code: Python; '' where none is needed.
  """

  title: str
  command: str
  code: str


def snippets(workdir: str, findings: Findings) -> list[Snippet]:
  """Predicting, loading in timm, and applying the adapter to its base."""
  converted = os.path.join(workdir, 'timm')
  folded = os.path.join(workdir, 'folded')
  return [
    Snippet('Predict', predict_command(workdir), predict_code(workdir)),
    Snippet(
      'Load in timm',
      shlex.join(['python', '-m', 'glora_jax.convert', folded, converted, '--format', 'timm']),
      f"""\
import timm

model = timm.create_model({f'local-dir:{converted}'!r}, pretrained=True)""",
    ),
    Snippet('Apply the adapter', '', adapter_code(workdir, findings)),
  ]


def predict_code(workdir: str) -> str:
  """Python that says the classes of images."""
  return f"""\
from glora_jax.models.classifier import Classifier

classifier = Classifier({os.path.join(workdir, 'folded')!r})
for path, probabilities in classifier(['photo.jpg']):
  print(path, classifier.classes[probabilities.argmax()], probabilities.max())"""


def predict_command(workdir: str) -> str:
  """A command that says the classes of images."""
  folded = os.path.join(workdir, 'folded')
  return shlex.join(['python', '-m', 'glora_jax.predict', '--model', folded, 'photo.jpg'])


def adapter_code(workdir: str, findings: Findings) -> str:
  """Python that puts the adapter onto the base that it was trained on."""
  space = findings.spec.layers[0].space
  offered = '' if space == SearchSpace() else f', space=glora_jax.{space!r}'
  backbone = dict(findings.backbone)
  size = backbone['image_size']
  checksum = {'sha256': backbone.pop('sha256')} if 'sha256' in backbone else {}
  hints = {name: backbone.pop(name) for name in ('num_heads', 'activation') if name in backbone}
  sizes = {'num_classes': len(findings.task.classes), **backbone}
  return f"""\
import jax.numpy as jnp

import glora_jax
from glora_jax.models import fetch, weights

base = fetch.fetch({_base(findings.result)}{_arguments(checksum)})
loaded = weights.load(base{_arguments(hints)})
model, params, metadata = weights.refit(*loaded{_arguments(sizes)})
images = jnp.zeros((1, {size}, {size}, 3))  # normalized as '{findings.result['normalization']}'
adapted = glora_jax.adapt(model, images{offered})
variables, genome = glora_jax.load_adapter(
  {os.path.join(workdir, 'adapter.safetensors')!r}, adapted, params
)
logits = adapted.apply(variables, images, genome=genome)"""


def _base(result: Mapping[str, Any]) -> str:
  """The argument of `fetch` for the weights of a result."""
  name, revision = result['weights'], result.get('weights_revision')
  if name == EMBEDDED:
    return 'weights.EMBEDDED_FILE'
  return repr(f'{name.partition("@")[0]}@{revision}' if revision else name)


def _arguments(values: Mapping[str, Any]) -> str:
  return ''.join(f', {name}={value!r}' for name, value in values.items())
