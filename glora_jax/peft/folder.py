"""The folder of a PEFT adapter: writes a structure as a kind of PEFT, and reads any kind."""

from __future__ import annotations

import collections
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax
import numpy as np

from glora_jax import hub
from glora_jax.checks import check_path, listed, shown, validate
from glora_jax.files import (
  Path,
  damaged,
  first_line,
  load_json,
  read_safetensors,
  require_numbers,
  write_json,
  write_safetensors,
)
from glora_jax.mesh import place_like
from glora_jax.method.adapted import (
  Adapted,
  check_params,
  check_variables,
  dequantize_heads,
  fixed_genome,
)
from glora_jax.method.adapter import ADAPTER, COLLECTION
from glora_jax.method.adapter_file import EXTEND, init_shapes, numbers_read, require_finite, unpack
from glora_jax.method.genomes import genome_from_json
from glora_jax.method.groups import Group
from glora_jax.method.presets import smallest_space
from glora_jax.method.space import TENSORS, WEIGHT_TENSORS
from glora_jax.peft import experts
from glora_jax.peft.kinds import (
  KINDS,
  TOKENS,
  Arrays,
  Change,
  Changes,
  Factors,
  KindName,
  NotHeldError,
  change_of,
  factors,
  forms_of,
  shift,
)
from glora_jax.peft.modules import (
  FOLD,
  PARAMETER,
  ROWS,
  Layer,
  Module,
  find_heads,
  find_layers,
)
from glora_jax.torch_names import NameMap, name_map
from glora_jax.tree import KeyPath, get, grouped, on_host, path_name, update

log = logging.getLogger(__name__)

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'

_ROOT = 'base_model.model.'  # before the names of the torch model's modules
_TENSOR = re.compile(
  r'(.+)\.((?:lora|hira|glora|ia3|trainable_tokens)_.+|base_layer\.(?:bias|weight))'
)
_NO_MODULE = 'dummy-target-modules'  # a LoRA of PEFT may not be without modules otherwise
_MERGE = 'merge it in PEFT (merge_and_unload), and load the model'

# Fields of a config with which the same tensors are another function.
_NOT_READ = re.compile(
  'use_(bdlora|qalora)|(kasa|arrow|monteclora)_config|alora_invocation_tokens|layer_replication'
)
# Beginnings of `init_lora_weights` with which PEFT changes the base.
_OTHER_BASES = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')


class PeftAdapter(NamedTuple):
  """A PEFT adapter, with the torch model's names.

  Attributes:
    path: path of its folder.
    kind: 'lora', 'dora', 'hira', 'glora' or 'ia3'.
    config: its config.
    modules: PEFT's tensors of each module, by their names in the module ('lora_A.weight').
    heads: tensors that replace the torch model's.
  """

  path: str
  kind: str
  config: dict[str, Any]
  modules: dict[str, Arrays]
  heads: Arrays


def save(
  folder: Path,
  adapted: Adapted,
  variables: Mapping[str, Any],
  names: str | NameMap | None = None,
  *,
  kind: KindName | None = None,
  heads: Mapping[str, np.ndarray] = {},
  base: str | None = None,
) -> KindName:
  r"""Writes a fixed structure as an adapter that HF PEFT loads onto the torch model.

  The kind is the narrowest that holds the structure: LoRA (B), HiRA (A), DoRA (a constant or vector
  of A, and B) or, if all layers are `nn.Linear`, GLoRA. LoRA and DoRA hold C, D and E, too, as
  `bias='lora_only'`: PEFT then replaces the layers' biases, and does not put them back when the
  adapter is disabled. `PeftModel.from_pretrained(torch_model, folder)` gives the same logits, and
  `merge_and_unload` the folded weights.

  If queries, keys and values are one layer here and three in torch, each of the three gets its
  outputs, and all get the same `lora_A`. Heads are saved as `modules_to_save`. Adapters are written
  in float32, heads in their own type.

  Args:
    folder: path of the folder; created if missing.
    adapted: the adapted model.
    variables: its variables, after training.
    names: names of the torch model's modules, by paths here, which may be regular expressions:
      `{r'layers/(\d+)/attn/q': r'model.layers.\1.self_attn.q_proj'}`. Several names share a layer's
      outputs equally, and '{}' is the place in a stack. An expert is an index of a parameter,
      'mlp.experts.down_proj[{}]'. 'tunix_gemma3', 'tunix_llama3' and 'tunix_qwen3' are those of
      transformers' models, for the models of google-tunix. None if the paths here are torch's
      names, as in a model of `glora_jax.torch`.
    kind: 'lora', 'hira', 'dora' or 'glora'; None for the narrowest.
    heads: tensors to write instead of the variables' heads, by torch name, if the torch model has a
      head in another shape.
    base: name or path of the base model to write to the config; a name on the hub may have a
      revision, `hf:owner/name@revision`. None for the `name_or_path` of a PyTorch module.

  Returns:
    The kind that was written.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: the structure is free, the kind cannot hold it, or none can, a layer or head has no
      name, or the variables are those of another model or not finite.

  Example:
    >>> import json, pathlib, tempfile, jax.numpy as jnp
    >>> from glora_jax import adapt, peft
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)), structure='lora:4', scale=2.0)
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   kind = peft.save(folder, adapted, variables, {'Dense': 'layers.0.fc'})
    ...   config = json.loads(pathlib.Path(folder, 'adapter_config.json').read_text())
    >>> kind, config['target_modules'], config['r'], config['lora_alpha']
    ('lora', ['layers.0.fc'], 4, 8)
  """
  folder = check_path(folder)
  validate(base, str | None, 'base')
  validate(heads, Mapping, 'heads')
  validate(kind, KindName | None, 'kind')
  on_hub = hub.parse(base) if hub.is_hub_name(base) else hub.HubName(base or '')
  validate(adapted, Adapted, 'adapted')
  auto_mapping = None
  module = getattr(adapted.model, 'skeleton', None)  # of PyTorch
  if module is not None and names is None:
    auto_mapping = {
      'base_model_class': type(module).__name__,
      'parent_library': type(module).__module__,
    }
    if base is None:
      on_hub = hub.HubName(getattr(module, 'name_or_path', ''))
  names = None if names is None else name_map(names)
  genome = fixed_genome(adapted, 'peft.save')
  check_variables(adapted, variables)
  changes = _changes(adapted, variables, names, genome)
  head_paths = find_heads(adapted, names)
  saved = sorted({name.rpartition('.')[0] for name in head_paths})
  _check_ends(changes, saved)
  kind, tensors, fields = _narrowest(changes, [kind] if kind else get_args(KindName))
  modules = [module for module, _ in changes]
  tensors = experts.join(tensors, modules)
  params = dequantize_heads(adapted, variables['params'])
  for name, path in head_paths.items():
    own = on_host(nn.meta.unbox(get(params, path)))
    tensors[name] = heads.get(name, own if names is None else own.T)
  require_finite(folder, tensors)
  config = {  # the other fields have PEFT's defaults
    'peft_type': KINDS[kind].peft_type,
    'auto_mapping': auto_mapping,
    'base_model_name_or_path': on_hub.repository or None,
    'revision': on_hub.revision,
    'target_modules': [m.name for m in modules if m.kind not in (PARAMETER, ROWS)] or _NO_MODULE,
    'target_parameters': sorted({m.target for m in modules if m.kind == PARAMETER}) or None,
    'modules_to_save': saved or None,
    **fields,
  }
  os.makedirs(folder, exist_ok=True)
  tensors = {f'{_ROOT}{name}': value for name, value in tensors.items()}
  write_safetensors(os.path.join(folder, WEIGHTS), tensors, {'format': 'pt'})
  write_json(os.path.join(folder, CONFIG), config)
  log.info('%s: written as %s of PEFT', folder, KINDS[kind].title)
  return kind


def load(
  adapter: Path | PeftAdapter, adapted: Adapted, params: Any, names: str | NameMap | None = None
) -> tuple[Adapted, dict[str, Any]]:
  """Reads an adapter of PEFT as a structure of an adapted model.

  LoRA (also rank-stabilized, and with biases), DoRA, HiRA, GLoRA and IA3 are read. The log names
  the structure, and `summary` of the result lists it. A LoRA with another scale than the model's
  search space is rescaled. If queries, keys and values are one layer here and three in torch, the
  ranks of those with different `lora_A` add up, in general to 3r, and the layer's search space must
  have a LoRA of that rank.

  Args:
    adapter: path of its folder, its name on the hub, `hf:owner/name[@revision]`, or the result of
      `read`.
    adapted: the adapted base model, with the heads that the adapter trains.
    params: the base's parameters; heads of the adapter replace theirs. The heads of a quantized
      base are in full precision, as `adapted.init` returns them.
    names: see `save`.

  Returns:
    (adapted, variables): the model with the adapter's structure fixed, and variables with its
    arrays and heads, as of `load_adapter`.

  Raises:
    FileNotFoundError: there is no adapter.
    TypeError: an argument has the wrong type.
    ValueError: it is damaged, of another kind, or belongs to another model; or the search space
      lacks the ranks that it needs, which the message names.

  Example:
    >>> import tempfile, jax.numpy as jnp
    >>> from glora_jax import adapt, peft
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)), structure='lora:4')
    >>> params, names = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}, {'Dense': 'layers.0.fc'}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   kind = peft.save(folder, adapted, variables, names)
    ...   adapted, variables = peft.load(folder, adapted, params, names)
    >>> adapted.genome.tolist()
    [[0, 3, 0, 0, 0]]
  """
  validate(adapted, Adapted, 'adapted')
  names = None if names is None else name_map(names)
  check_params(adapted, params)
  if not isinstance(adapter, PeftAdapter):
    adapter = read(adapter)
  layers = find_layers(adapted, names, range(len(adapted.spec)), params)
  modules = [module for layer in layers for module in layer.modules]
  parameters = adapter.config.get('target_parameters') or ()
  adapter = adapter._replace(modules=experts.split(adapter.modules, parameters, modules))
  known = {module.name for module in modules}
  rows = [  # of a tied table, which PEFT may have for the head once more
    adapter.modules.get(module.name, {}).get(TOKENS, np.nan)
    for module in modules
    if module.group.site.is_tied
  ]
  if unknown := {
    name
    for name, found in adapter.modules.items()
    if name not in known and not any(np.array_equal(found.get(TOKENS, ()), x) for x in rows)
  }:
    raise ValueError(
      f'{adapter.path} adapts {grouped(unknown)}, and no adapted layer of this model has that '
      'name; adapt the layer, or correct names=.'
    )
  changes = [(layer, _of_layer(adapter, layer)) for layer in layers]
  params = _with_heads(adapter, adapted, dequantize_heads(adapted, params), names)
  genome, collection = _stored(adapter, adapted.fix(None), params, changes)
  variables = {'params': params, COLLECTION: place_like(params, collection)}
  if adapted.genome is None:
    return adapted.fix(genome), variables
  if (genome != np.where(genome, adapted.genome, 0)).any():  # what is none may be zeros
    raise ValueError(
      f'{adapter.path} has other forms than the structure that this model is fixed to; load it '
      'into adapted.fix(None).'
    )
  trainable, frozen = adapted.split(variables)
  return adapted, adapted.join(trainable, {**frozen, COLLECTION: {}})


def read(folder: Path) -> PeftAdapter:
  """Reads a PEFT adapter without loading it into a model; errors as of `load`."""
  path = check_path(hub.local(folder, (WEIGHTS, CONFIG)))
  file = os.path.join(path, WEIGHTS)
  if not os.path.isfile(file):
    raise FileNotFoundError(
      f'There is no {file}; pass the folder of an adapter that PEFT has saved, with '
      'safe_serialization=True.'
    )
  config = load_json(os.path.join(path, CONFIG), 'get it again')
  kind = _kind_of(path, config)
  try:
    tensors, _ = read_safetensors(file)
  except Exception as error:  # safetensors raises its own type, and others for odd contents
    raise damaged(file, error, 'get it again') from error
  require_numbers(file, tensors)
  modules, heads = collections.defaultdict(dict), {}
  for name, value in tensors.items():
    name = name.removeprefix(_ROOT).replace('.token_adapter.', '.')
    if match := _TENSOR.fullmatch(name):
      modules[match[1]][match[2]] = value
    else:
      heads[name] = value
  if not modules:
    raise ValueError(f'{path} adapts no module; pass the folder of a PEFT adapter.')
  return PeftAdapter(path, kind, config, dict(modules), heads)


def _kind_of(path: str, config: Any) -> str:
  """The kind of an adapter with this config.

  Raises:
    ValueError: it is of none that can be read.
  """
  if not isinstance(config, dict):
    raise ValueError(f'{path}: {CONFIG} is not the config of a PEFT adapter; get it again.')
  kinds = {kind.peft_type: name for name, kind in reversed([*KINDS.items()])}
  peft_type = str(config.get('peft_type'))
  if peft_type not in kinds:
    raise ValueError(
      f'{path} has peft_type={shown(peft_type)}, which is read only if it is one of '
      f'{listed(sorted(kinds))}; {_MERGE}.'
    )
  if str(config.get('init_lora_weights')).lower().startswith(_OTHER_BASES):
    raise ValueError(
      f'{path} has init_lora_weights={shown(config["init_lora_weights"])}, which changes the base; '
      'in PEFT, save it as a LoRA (save_pretrained with path_initial_model_for_weight_conversion), '
      'or merge it.'
    )
  odd = {k: x for k, x in config.items() if x and x != 'none' and _NOT_READ.fullmatch(k)}
  if odd:
    stated = ', '.join(f'{field}={shown(value)}' for field, value in odd.items())
    raise ValueError(f'{path} has {stated}, which the equation does not have; {_MERGE}.')
  parameters = config.get('target_parameters') or []
  if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
    raise ValueError(
      f'{path} has target_parameters={shown(parameters)}, which must be a list of names; get it '
      'again.'
    )
  return 'dora' if config.get('use_dora') else kinds[peft_type]


def _changes(
  adapted: Adapted, variables: Mapping[str, Any], names: NameMap | None, genome: np.ndarray
) -> Changes:
  """The change of each torch module that the structure changes."""
  rows = [row for row, layer in enumerate(adapted.spec) if layer.ids or genome[row].any()]
  if not rows:
    raise ValueError(
      f'No layer of the structure has a form, but a PEFT adapter needs at least one; {FOLD}.'
    )
  adapter = jax.tree.map(on_host, nn.meta.unbox(variables[COLLECTION]))
  arrays = collections.defaultdict(dict)
  for name, array, part in numbers_read(adapted, genome, adapter):
    layer, _, name = name.rpartition('/')
    arrays[layer][name] = array[part].astype(np.float32)
  changes = []
  for layer in find_layers(adapted, names, rows, variables['params']):
    name = adapted.spec.layers[layer.row].name
    if not layer.modules:
      raise ValueError(
        f'{name} is not the weight of one torch module or expert, but of a recurrent layer or of '
        'nn.MultiheadAttention, for instance, for which PEFT has other adapters or none; '
        f'{FOLD}, or pass names=.'
      )
    change = arrays[f'{COLLECTION}/{name}']
    if 'C_up' in change:
      change['C_down'] = change['C_down'] @ change.pop('C_up')
    changes += [(module, _of_outputs(change, module.outputs)) for module in layer.modules]
  return changes


def _check_ends(changes: Changes, heads: Sequence[str]) -> None:
  """Raises if PEFT would treat an adapted module as a head, because its name ends with a head's."""
  for module, _ in changes:
    if ends := [head for head in heads if module.name.endswith(head)]:
      raise ValueError(
        f'PEFT would train {module.name} in full, because its name ends with that of the head '
        f'{ends[0]}; {FOLD}, or adapt the model with both as heads, or with heads=None.'
      )


def _of_outputs(change: Change, outputs: slice) -> Change:
  """The part of a change for some outputs; constants are for all."""
  return {
    name: numbers[..., outputs]
    if 'out' in ADAPTER[name].axes and numbers.shape[-1] > 1
    else numbers
    for name, numbers in change.items()
  }


def _narrowest(changes: Changes, kinds: Sequence[KindName]) -> tuple[KindName, dict[str, Any], Any]:
  """The first kind that holds all changes, with its tensors and fields."""
  reasons = []
  for name in kinds:
    kind = KINDS[name]
    try:
      kind.check(changes)
      assert kind.write is not None
      return name, *kind.write(changes)
    except NotHeldError as error:
      reasons.append(f'{kind.title} {error}')
  remedy = 'leave out kind=, or ' if len(kinds) == 1 else ''
  raise ValueError(f'PEFT cannot hold this structure: {"; ".join(reasons)}; {remedy}{FOLD}.')


def _of_layer(adapter: PeftAdapter, layer: Layer) -> Change:
  """The change of a layer from the changes of its modules."""
  changes = [(module, _of_module(adapter, module)) for module in layer.modules]
  if len(changes) < 2:
    return changes[0][1] if changes else {}
  # The layer has one C, and each module may have another, so their change of the bias is an E.
  joined = {'E': np.concatenate([shift(*change) for change in changes])}
  for tensor in WEIGHT_TENSORS:
    joined |= _side_by_side(layer.group, changes, tensor)
  return change_of(joined)


def _of_module(adapter: PeftAdapter, module: Module) -> Change:
  """The change of a module by an adapter."""
  tensors = dict(adapter.modules.get(module.name, {}))
  if not tensors:
    return {}
  kind = KINDS['rows' if TOKENS in tensors else adapter.kind]
  try:
    kind.check([(module, {})])
    base = tensors.pop('base_layer.weight', None)  # PEFT saves that of a table which it adapts
    change = kind.read(module, tensors, adapter.config)
    if base is not None and module.kind != ROWS:
      kernel = module.kernel() if module.kind == 'Embedding' else module.kernel().T
      if not np.allclose(base, kernel, rtol=0.01, atol=0.01):
        raise ValueError('it has other base weights than this model')
    if tensors:
      raise ValueError(f'it has {listed(sorted(tensors))}, which {adapter.kind} does not')
    if not module.has_bias and change.keys() & {'C_down', 'D', 'E'}:
      raise ValueError('it has a bias, and this model has none there')
  except (re.error, TypeError, ValueError, AttributeError, ArithmeticError) as error:
    reason = first_line(error)
    raise ValueError(f'{adapter.path}: {module.name} cannot be read: {reason}.') from error
  return change


def _side_by_side(group: Group, changes: Changes, tensor: str) -> Arrays:
  """A layer's A or B from those of its modules, each of which is zero in the others' outputs.

  Those with an equal `down` share its columns, so that a layer from `save` gets its rank back.
  """
  by_down: dict[bytes, Factors] = {}
  for module, change in changes:
    down, up = factors(module, change, tensor)
    wide = np.zeros((len(up), group.out_features), np.float32)
    by_down.setdefault(down.tobytes(), (down, wide))[1][:, module.outputs] = up
  downs, ups = zip(*by_down.values(), strict=True)
  return {f'{tensor}_down': np.concatenate(downs, axis=1), f'{tensor}_up': np.concatenate(ups)}


def _with_heads(adapter: PeftAdapter, adapted: Adapted, params: Any, names: NameMap | None) -> Any:
  """The parameters with an adapter's heads."""
  paths = find_heads(adapted, names)
  if others := adapter.heads.keys() - paths.keys():
    raise ValueError(
      f'{adapter.path} has {grouped(others)}, which are not heads of this model; adapt with the '
      f'heads that the adapter trains in full, or remove these tensors; {EXTEND}.'
    )
  heads: dict[KeyPath, Any] = {}
  for name, value in adapter.heads.items():
    path, value = paths[name], value if names is None else value.T
    expected = adapted.places.param_shapes[path].shape
    if value.shape != expected:
      raise ValueError(
        f'{adapter.path} is of another model: its {path_name(path)} is {value.shape}, and '
        f'{expected} here; {EXTEND}.'
      )
    heads[path] = value
  return update(params, place_like(params, heads))


def _stored(
  adapter: PeftAdapter, adapted: Adapted, params: Any, changes: Sequence[tuple[Layer, Change]]
) -> tuple[np.ndarray, Any]:
  """The genome and the `glora` collection, of a free structure, that hold the changes of layers."""
  arrays, forms = {}, {}
  for layer, change in changes:
    name = adapted.spec.layers[layer.row].name
    if 'B_down' in change:  # the factors are PEFT's, so training continues as it would there
      change = {**change, 'B_up': change['B_up'] / layer.group.space.scale}
    forms[layer.row] = {'layer': name, **forms_of(change)}
    if rows := len(layer.group.ids):
      change = {'B_up': np.zeros((rows, layer.group.out_features), np.float32), **change}
      forms[layer.row]['B'] = f'rows:{rows}'
    arrays |= {f'{COLLECTION}/{name}/{key}': numbers for key, numbers in change.items()}
  content = {'genome': [], 'layers': [forms[row] for row in sorted(forms)]}
  log.info('%s: %s of PEFT, read as %s', adapter.path, KINDS[adapter.kind].title, _counted(content))
  try:
    genome_from_json(adapted.spec, content)
  except ValueError as error:
    ranks = smallest_space(content).ranks
    raise ValueError(
      f'{adapter.path} needs forms that the search space lacks: {error} If a layer is several '
      f'modules of the adapter, their ranks add up. Adapt with space=SearchSpace(ranks={ranks}).'
    ) from error
  shapes = init_shapes(adapted, params)[COLLECTION]
  metadata = {**content, 'scale': [layer.space.scale for layer in adapted.spec]}
  genome, collection, _ = unpack(adapter.path, arrays, metadata, adapted, shapes)
  return genome, collection


def _counted(structure: Mapping[str, Any]) -> str:
  """The combinations of forms in a structure, and the number of layers that have each."""
  layers = (
    ', '.join(f'{tensor}={row[tensor]}' for tensor in TENSORS if row[tensor] != 'none')
    for row in structure['layers']
  )
  counts = collections.Counter(layers).items()
  return '; '.join(f'{forms} in {number} layers' for forms, number in counts if forms)
