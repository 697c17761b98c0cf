"""Checkpoints in every format, byte for byte, and all numbers that runs report."""

import csv
import hashlib
import json
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import glora_jax
from benchmarks.machinery.killable import without_seconds
from benchmarks.record.comparing import Values, digest
from glora_jax.files import read_arrays
from glora_jax.models import peft, weights
from glora_jax.models.formats.table import WRITTEN
from glora_jax.runs import comparison, experiment
from glora_jax.runs.config import default_config

FIXTURES = pathlib.Path(__file__).parents[2] / 'tests' / 'fixtures'
COMPARED = ('lora', 'bitfit', 'gradient')
SHORT = {
  'mesh.devices': 'one',
  'model.remat': 'dots_saveable',
  'budget': 20_000,
  'presets': ('lora', 'gradient'),
  'training.epochs': 5,
  'training.warmup_epochs': 1,
  'training.learning_rate': 4e-3,
  'search.population': 8,
  'search.generations': 2,
  'search.parents': 3,
  'search.mutations': 4,
  'search.crossovers': 3,
  'finetune.epochs': 1,
  'finetune.warmup_epochs': 0,
  'finetune.learning_rate': 2e-3,
}
# Times, and digests of files whose last bits differ between processors.
LEFT_OUT = ('seconds', 'seconds_spread', 'provenance', 'sha256')
_NUMBER = re.compile(r'[-+\u2212]?\d[\d,]*(?:\.\d+)?')
_PAGE_PARTS = re.compile(r'<(script|style|svg)\b.*?</\1>', re.S)


def record() -> Iterator[tuple[str, Values]]:
  """Names and entries, one after the other."""
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    for path in sorted(FIXTURES.iterdir()):
      if path.is_dir():
        yield f'conversion/{path.name}', _conversions(path, place / path.name)
    yield 'conversion/peft', _peft(place / 'peft')
    for name, fields in _runs().items():
      yield f'run/{name}', _run(place, name, fields)
    yield 'comparison', _comparison(place)


def _conversions(source: pathlib.Path, place: pathlib.Path) -> Values:
  """By format, SHA-256 of a checkpoint's files in it, and the parameters that are read back.

  None where a format has no place for the model.
  """
  place.mkdir()
  model, params, metadata = weights.load(source)
  found: Values = {'parameters': digest(params)}
  for name in ('glora_jax', *WRITTEN):
    folder = place / name
    try:
      weights.save(folder, model, params, metadata, name)
    except ValueError:
      found[name] = None
    else:
      files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
      found[name] = {'files': files, 'parameters': digest(weights.load(folder).params)}
  return found


def _peft(place: pathlib.Path) -> Values:
  """A LoRA of a ViT as PEFT's adapter, and what comes back."""
  from comparing import random_variables

  model, params, metadata = weights.load(FIXTURES / 'timm_vit')
  images = jax.ShapeDtypeStruct((1, *[metadata['image_size']] * 2, 3), jnp.float32)
  adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace(ranks=(2, 4, 6, 12)))
  genome = glora_jax.preset(adapted.spec, 'lora:2')
  peft.save_peft(place, adapted, random_variables(adapted, params), 'timm', genome)
  _, variables = peft.load_peft(place, adapted, params)
  files = {path.name: _sha256(path) for path in sorted(place.iterdir())}
  return {'files': files, 'variables': digest(variables), 'genome': genome}


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _runs() -> dict[str, Values]:
  return {
    'search': {},
    'gradient': {
      'structure': 'gradient',
      'training.warmup_epochs': 0,
      'training.learning_rate': 2e-3,
    },
    'pareto, augmented': {
      'search.mode': 'pareto',
      'augment.flip': True,
      'augment.mixup': 0.2,
    },
  }


def _config(fields: Values) -> Any:
  """The embedded backbone on digits, with a few epochs of everything."""
  config = default_config()
  config.update_from_flattened_dict({**SHORT, **fields})
  return config


def _run(place: pathlib.Path, name: str, fields: Values) -> Values:
  """What a run says: its result, its metrics, the structure, the numbers of its page."""
  workdir = place / name.replace(', ', '_')
  experiment.run(_config(fields), str(workdir))
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  scored = workdir / 'search' / 'archive.npz'
  archive = read_arrays(scored, 'archive') if scored.exists() else {}
  return {
    **_reported(workdir),
    'page': _numbers_of_page((workdir / 'report.html').read_text()),
    'metrics': [without_seconds(json.loads(line), LEFT_OUT) for line in lines],
    'genome': json.loads((workdir / 'genome.json').read_text()),
    'archive': {name: archive[name] for name in ('correct', 'loss', 'generation') if archive},
    'test_list': _sha256(workdir / 'test_list.json'),
  }


def _reported(workdir: pathlib.Path) -> Values:
  """The result of a job, and its tables."""
  tables = {}
  for path in sorted(workdir.glob('*.csv')):
    with open(path, newline='') as file:
      rows = [without_seconds(row, LEFT_OUT) for row in csv.DictReader(file)]
    tables[path.name] = [{name: _number(cell) for name, cell in row.items()} for row in rows]
  return {
    'result': without_seconds(json.loads((workdir / 'result.json').read_text()), LEFT_OUT),
    'tables': tables,
  }


def _number(cell: str) -> float | str:
  try:
    return float(cell)
  except ValueError:
    return cell


def _numbers_of_page(page: str) -> list[str]:
  """Cells of a page's tables that begin with a number and are no time, in their order."""
  cells = re.findall(r'<td\b[^>]*>(.*?)</td>', _PAGE_PARTS.sub('', page), re.S)
  texts = (re.sub(r'<[^>]+>|\s+', ' ', cell).strip() for cell in cells)
  return [text for text in texts if _NUMBER.match(text) and not text.endswith((' s', 'min'))]


def _comparison(place: pathlib.Path) -> Values:
  config = _config({'job': 'compare', 'budget': None, 'presets': ()})
  config.compare.update(methods=COMPARED, budgets=(20_000,), seeds=2, rates=(1e-3, 4e-3))
  workdir = place / 'comparison'
  comparison.run(config, str(workdir))
  return _reported(workdir)
