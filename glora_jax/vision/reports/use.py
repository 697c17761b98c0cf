"""Commands and code that use the result of a run."""

from __future__ import annotations

import os
import shlex
from typing import Any

from glora_jax.vision.models.weights import EMBEDDED
from glora_jax.vision.reports.findings import Findings
from glora_jax.vision.reports.page import Code, Heading
from glora_jax.vision.structure_names import FINETUNING


def snippets(workdir: str, findings: Findings) -> list[Any]:
  """Commands and code that predict, load the model in timm, and apply an adapter."""
  if findings.outcome is None:
    return []
  folded, converted = os.path.join(workdir, 'folded'), os.path.join(workdir, 'timm')
  predict = f'python -m glora_jax.predict --model {shlex.quote(folded)} photo.jpg'
  predict_code = f"""\
from glora_jax.vision.models.classifier import Classifier

classifier = Classifier({folded!r})
for path, probabilities in classifier(['photo.jpg']):
  print(path, classifier.classes[probabilities.argmax()], probabilities.max())"""
  convert = f"""\
python -m glora_jax.convert {shlex.quote(folded)} {shlex.quote(converted)} --format timm"""
  convert_code = f"""\
import timm

model = timm.create_model({f'local-dir:{converted}'!r}, pretrained=True)"""
  snippets = {'Predict': [predict, predict_code], 'Load in timm': [convert, convert_code]}
  if findings.result['result'] != FINETUNING:
    snippets['Apply the adapter'] = [adapter_code(workdir, findings)]
  return [
    block for title, codes in snippets.items() for block in (Heading(title), *map(Code, codes))
  ]


def adapter_code(workdir: str, findings: Findings) -> str:
  """Code that applies the adapter to the base that it was trained on."""
  name, revision = findings.result['weights'], findings.result.get('weights_revision')
  base = repr(f'{name.partition("@")[0]}@{revision}' if revision else name)
  if name == EMBEDDED:
    base = 'weights.EMBEDDED_FILE'
  sizes = {'num_classes': len(findings.task.classes), **findings.backbone}
  checksum, hints = (
    ''.join(f', {name}={sizes.pop(name)!r}' for name in names if name in sizes)
    for names in (('sha256',), ('num_heads', 'activation'))
  )
  fitted = ''.join(f', {name}={value!r}' for name, value in sizes.items())
  size = sizes['image_size']
  return f"""\
import jax.numpy as jnp

import glora_jax
from glora_jax.vision.models import fetch, weights

base = fetch.fetch({base}{checksum})
loaded = weights.load(base{hints})
model, params, metadata = weights.refit(*loaded{fitted})
images = jnp.zeros((1, {size}, {size}, 3))  # normalized as '{findings.result['normalization']}'
path = {os.path.join(workdir, 'adapter.safetensors')!r}
adapted = glora_jax.adapt(model, images, structure=path)
adapted, variables = glora_jax.load_adapter(path, adapted, params)
logits = adapted.apply(variables, images)"""
