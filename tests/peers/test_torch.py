"""PyTorch modules, adapted by torchax: a zoo counted by hand, and what holds for every module."""

import concurrent.futures
import copy
import functools
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
import torchax
import transformers
from comparing import assert_close, assert_refused, assert_trees_equal, trained_variables, vector
from hand_count import by_name, quick_first
from joining import run_on_eight
from transformers.modeling_outputs import ImageClassifierOutput
from zoo_cases import SPACE, Case

import glora_jax
import glora_jax.torch
from tests.peers import torch_zoo
from tests.peers.torch_zoo import TOKENS, as_numpy, language_model, outputs_of

# The zoo.


@quick_first(torch_zoo.EXAMPLES, 'llama', 'mixtral', 'timm_vit', 'timm_efficientnet')
def test_a_module_of_the_zoo_is_found_whole_and_folds_back_into_pytorch(name):
  example = torch_zoo.EXAMPLES[name]()
  adapted, params = glora_jax.torch.adapt(
    example.module, *example.inputs, space=SPACE, **example.options, **example.kwargs
  )

  def by_pytorch(params):
    glora_jax.torch.copy_to(params, example.module)
    return outputs_of(example.module, *example.inputs, **example.kwargs)

  case = Case(example, adapted, params, by_pytorch)
  case.check_layers()
  reasons = {matrix.name: matrix.reason for matrix in adapted.coverage().uncovered}
  assert reasons == example.reasons
  case.check_results()


def test_experts_of_the_module_run_as_they_did():
  example = torch_zoo.EXAMPLES['mixtral']()
  config = example.module.config
  before = config._experts_implementation, config.to_dict()
  model = glora_jax.torch.Module(example.module)
  assert (config._experts_implementation, config.to_dict()) == before
  assert before[0] != model.skeleton.config._experts_implementation == 'batched_mm'


# What holds for every module.


class Small(torch.nn.Module):
  """Two linear layers, and what is done with them."""

  def __init__(self, body=None, **attributes):
    super().__init__()
    torch.manual_seed(0)
    self.hidden, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)
    self.body = body
    for name, value in attributes.items():
      setattr(self, name, value)
    self.eval()

  def forward(self, x, **kwargs):
    if self.body is None:
      return self.head(torch.relu(self.hidden(x)))
    return self.body(self, x, **kwargs)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def ready(module, *inputs, **kwargs):
  """(The module adapted, trained variables)."""
  inputs = inputs or (X,)
  adapted, params = glora_jax.torch.adapt(module, *inputs, structure='lora:2', **kwargs)
  return adapted, trained_variables(adapted, params)


def assert_runs(module):
  """Outputs and gradients of an adapted module are PyTorch's, folded too; gives it adapted."""
  adapted, params = glora_jax.torch.adapt(module, X, structure='lora:2')

  def loss(params):
    outputs = adapted.model.apply({'params': params}, X)
    return (outputs**2).sum(), outputs

  gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(params)
  expected = module(X)
  assert_close(outputs, expected.detach())
  (expected**2).sum().backward()
  for name, gradient in by_name(gradients).items():
    value = module.get_parameter(name.replace('/', '.'))
    if value.requires_grad:
      assert_close(gradient, np.zeros(value.shape) if value.grad is None else value.grad)
  variables = trained_variables(adapted, params)
  outputs = vector(adapted.apply(variables, X))
  glora_jax.torch.copy_to(adapted.fold(variables), module)
  assert_close(outputs, outputs_of(module, X))
  return adapted


def fails(module, x):
  raise RuntimeError('inside')


def test_a_module_is_left_as_it_was_also_by_an_error_of_its_own_and_its_mode_is_logged(caplog):
  for body in (None, fails):
    module = Small(body).train()
    module.hidden.register_forward_hook(lambda part, args, output: output + 1)
    module.register_buffer('steps', torch.arange(3))
    module.hidden.weight.requires_grad_(False)
    module.head.eval()
    parts = [(part, dict(vars(part))) for part in module.modules()]
    state, hooks = module.state_dict(keep_vars=True), dict(module.hidden._forward_hooks)
    values = copy.deepcopy(state)
    if body is None:
      ready(module)
    else:
      with pytest.raises(RuntimeError, match='inside'):
        ready(module)
    assert 'is in training mode' in caplog.messages[0]
    assert [(part, vars(part)) for part in module.modules()] == parts
    assert module.hidden._forward_hooks == hooks
    for name, value in module.state_dict(keep_vars=True).items():
      assert value is state[name]
      assert torch.equal(value, values[name])
      assert value.requires_grad == values[name].requires_grad


def test_release_empties_a_module_and_load_fills_it(caplog):
  module = Small()
  expected = outputs_of(module, X)
  adapted, params = glora_jax.torch.adapt(module, X, structure='lora:2', release=True)
  assert not sum(value.numel() for value in module.parameters())
  assert_close(adapted.model.apply({'params': params}, X).ravel(), expected)
  other = torch.nn.Linear(2, 2)
  assert_refused('hidden.bias', glora_jax.torch.copy_to, params, other)
  with pytest.raises(ValueError, match='released'):
    glora_jax.torch.adapt(module, X)
  variables = adapted.init(jax.random.key(0), params)
  glora_jax.torch.copy_to(adapted.fold(variables), module)
  assert_close(outputs_of(module, X), expected)
  assert not caplog.records


@pytest.mark.parametrize(
  'dtype, tolerance', [('bfloat16', 2e-2), ('float16', 2e-3), ('float64', 1e-6)]
)
def test_dtypes_stay_or_the_log_says_so(dtype, tolerance, caplog):
  kind, is_wide = getattr(torch, dtype), dtype == 'float64'
  module, x = Small().to(kind), X.to(kind)
  adapted, params = glora_jax.torch.adapt(module, x, structure='lora:2')
  assert ('float64 becomes float32' in caplog.text) == ('hidden.weight' in caplog.text) == is_wide
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {'float32' if is_wide else dtype}
  variables = adapted.init(jax.random.key(0), params)
  expected = outputs_of(module, x)
  assert_close(vector(adapted.apply(variables, x)), expected, tolerance)
  for other, own in ((module, kind), (Small(), torch.float32)):
    caplog.clear()
    glora_jax.torch.copy_to(adapted.fold(variables), other)
    assert {value.dtype for value in other.parameters()} == {own}
    assert bool(caplog.records) == (other is not module and not is_wide)  # or they are float32
    assert_close(outputs_of(other, x.to(own)), expected, tolerance)


def test_frozen_and_tied_parameters_are_adapted_like_others():
  module = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3))).eval()
  module[2].weight = module[0].weight
  module[1].requires_grad_(False)
  adapted = assert_runs(module)
  assert [layer.name for layer in adapted.spec] == ['0', '1']
  assert module[2].weight is module[0].weight


def with_statistics(module, x):
  """Of a batch norm, in place, and of its own, set anew."""
  hidden = module.norm(module.hidden(x).reshape(5, 2, 2, 2)).flatten(1)
  if module.training:
    module.mean = 0.5 * module.mean + hidden.mean(0)
  return module.head(hidden)


def test_statistics_are_those_of_pytorch():
  module = Small(with_statistics, norm=torch.nn.BatchNorm2d(2))
  module.register_buffer('mean', torch.ones(8))
  other = copy.deepcopy(module)
  adapted, variables = ready(module, heads=None)
  start = dict(adapted.model.buffers)
  arrays = jax.tree.leaves((variables['params'], start))
  assert not any(array.committed for array in arrays), 'training would stay on the CPU'
  fresh = {'params': variables['params']}
  before = adapted.model.apply(fresh, X)
  train = {'train': True, 'rngs': {'dropout': jax.random.key(0)}}
  assert_refused('num_batches_tracked', adapted.apply, variables, X, **train)
  assert_trees_equal(adapted.model.buffers, start)
  assert adapted.apply(variables, X, mutable=['buffers'])[1] == {'buffers': {}}
  changed = {}
  for _ in range(2):
    outputs, changed = adapted.model.apply({**fresh, **changed}, X, mutable=['buffers'], **train)
  assert_close(before.ravel(), outputs_of(module, X))
  module.train()
  outputs_of(module, X)
  assert_close(outputs.ravel(), outputs_of(module, X))
  expected = as_numpy(dict(module.named_buffers()))
  assert changed['buffers'].keys() == expected.keys()
  glora_jax.torch.copy_to(variables['params'], other, buffers=changed['buffers'])
  for name, value in other.named_buffers():
    assert_close(value, expected[name])


def test_convolutions_are_those_of_pytorch_with_channels_last():
  options = {'stride': 2, 'padding': 1, 'dilation': 2, 'groups': 2}
  for kind, layer in enumerate((torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d), 1):
    module, x = layer(4, 6, 3, **options).eval(), torch.rand(2, 4, *range(9, 9 + kind))
    adapted, params = glora_jax.torch.adapt(module, x, structure='lora:1', convs=True)
    variables = adapted.init(jax.random.key(0), params)
    assert_close(vector(adapted.apply(variables, x)), outputs_of(module, x))
    program = jax.make_jaxpr(adapted.apply)(variables, x.numpy())
    order = f'ConvDimensionNumbers(lhs_spec=(0, {kind + 1},'
    assert order in str(program).replace('\n', ' '), program


def test_inputs_are_of_jax_numpy_or_pytorch_by_position_or_keyword():
  module, rows = Small(lambda m, x, rows: m.head(m.hidden(x[rows]))), torch.tensor([0, 3, 3])
  adapted, variables = ready(module, X, rows=rows)
  expected = adapted.apply(variables, X, rows=rows)
  glora_jax.torch.copy_to(adapted.fold(variables), module)
  assert_close(expected.ravel(), outputs_of(module, X, rows=rows))
  inputs = X.numpy(), rows.numpy()
  for x, rows in (inputs, jax.tree.map(jnp.asarray, inputs)):
    assert_trees_equal(adapted.apply(variables, x=x, rows=rows), expected)


def test_outputs_have_their_fields_under_jit_grad_and_vmap():
  def body(module, x):
    hidden = module.hidden(x)
    return ImageClassifierOutput(logits=module.head(hidden), hidden_states=(hidden,))

  adapted, variables = ready(Small(body))
  x = X.numpy()
  outputs = adapted.apply(variables, x)
  assert outputs.loss is None
  assert list(outputs) == ['logits', 'hidden_states']
  jitted = jax.jit(adapted.apply)(variables, x)
  assert isinstance(jitted, ImageClassifierOutput)
  assert_close(jitted['logits'], outputs.logits)
  assert_close(jitted.hidden_states[0], outputs[1][0])
  each = jax.vmap(adapted.apply, (None, 0))(variables, x)
  assert_close(each.logits, outputs.logits)
  gradient = jax.grad(lambda variables: adapted.apply(variables, x).logits.sum())(variables)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient['glora']))


def test_dropout_draws_from_the_key_of_the_call_and_leaves_no_tracer():
  def body(module, x):
    hidden = torch.nn.functional.dropout(module.hidden(x), 0.5, module.training)
    return hidden.new_empty(hidden.shape).bernoulli_(0.5) + module.head(hidden)[:, :1]

  adapted, variables = ready(Small(body))
  key_before = torchax.default_env().prng_key

  def call(key):
    return adapted.apply(variables, X, train=True, rngs={'dropout': key})

  first, second = jax.jit(call), jax.jit(lambda key: 1 * call(key))
  outputs = first(jax.random.key(0))
  assert_trees_equal(first(jax.random.key(0)), outputs)
  assert_trees_equal(second(jax.random.key(0)), outputs)
  assert np.abs(first(jax.random.key(1)) - outputs).max() > 0.1
  assert torchax.default_env().prng_key is key_before
  assert_refused('rngs', adapted.apply, variables, X, train=True)


def test_a_call_in_which_a_module_sets_attributes_leaves_no_tracer_nor_if_it_fails():
  def body(module, x):
    if module.table is None:
      module.table = module.hidden.weight.sum() + torch.arange(8).long()
    module.last = module.head(module.hidden(x) * module.table)
    return module.last

  module = Small(body, table=None)
  adapted, variables = ready(module)
  model = adapted.model
  apply = functools.partial(model.apply, variables)
  with pytest.raises((TypeError, ValueError)):  # after the first has been set
    jax.jit(apply)(X.numpy()[:, :2])
  with jax.checking_leaks(), warnings.catch_warnings():
    warnings.simplefilter('error')  # of integers with 64 bits, as those of long()
    outputs = [jax.jit(lambda x: apply(x))(X.numpy()) for _ in range(2)]
  assert_trees_equal(*outputs)
  assert module.table is model.skeleton.table is None
  assert not hasattr(model.skeleton, 'last')


@pytest.mark.parametrize('first', ['pytorch', 'jax'])
def test_functions_of_transformers_that_cache_keep_no_tensor_of_the_other_side(first):
  @transformers.pytorch_utils.compile_compatible_method_lru_cache(maxsize=1)
  def positions(count):
    return torch.arange(count)

  module = Small(lambda m, x: m.head(m.hidden(x) + positions(8)))
  if first == 'pytorch':
    outputs_of(module, X)
  assert_runs(module)
  assert not torch.compiler.is_compiling()


def static_cache(config):
  return transformers.StaticCache(config, max_cache_len=8)


@pytest.mark.parametrize('make', [static_cache, lambda config: transformers.DynamicCache()])
def test_caches_of_transformers_are_pytrees_in_and_out(make):
  module, tokens = language_model('Llama', num_hidden_layers=1), TOKENS.numpy()
  adapted, variables = ready(module, tokens)
  call = jax.jit(lambda tokens, cache: adapted.apply(variables, tokens, None, None, cache)[:2])
  expected = adapted.apply(variables, tokens).logits
  empty = make(module.config)
  structure = jax.tree.structure(empty)
  for _ in range(2):
    first, cache = call(tokens[:, :-1], empty)
    last, full = call(tokens[:, -1:], cache)
    assert jax.tree.structure(empty) == structure
    assert_close(jnp.concatenate([first, last], 1), expected)
  twice = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), cache)
  mapped, mapped_cache = jax.vmap(call)(np.stack([tokens[:, -1:]] * 2), twice)
  jax.tree.map(assert_close, jax.tree.map(lambda leaf: leaf[1], mapped_cache), full)
  assert_close(mapped[1], last)


def test_two_threads_trace_at_once():
  adapted, variables = ready(Small())

  def shifted(shift):
    return jax.jit(lambda x: adapted.apply(variables, x) + shift)(X.numpy()) - shift

  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    first, *others = threads.map(shifted, range(4))
  for output in others:
    assert_close(output, first, 1e-4)


def test_gradient_checkpointing_computes_again_with_equal_gradients():
  module, gradients = language_model('Llama', num_hidden_layers=1), []
  for checkpointed in (False, True):
    if checkpointed:
      module.gradient_checkpointing_enable()
    adapted, variables = ready(module, TOKENS, use_cache=False)

    @jax.grad
    def gradient(adapter, adapted=adapted, variables=variables):
      call = {'use_cache': False, 'train': True, 'rngs': {'dropout': jax.random.key(0)}}
      return adapted.apply({**variables, 'glora': adapter}, TOKENS, **call).logits.sum()

    assert ('remat' in str(jax.make_jaxpr(gradient)(variables['glora']))) == checkpointed
    gradients.append(jax.jit(gradient)(variables['glora']))
  jax.tree.map(assert_close, *gradients)


OF_NO_MODULE = torch.arange(8.0)


@torch.library.custom_op('glora_jax_tests::twice', mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
  return 2 * x


class Cache:
  """What JAX cannot pass on."""


@pytest.mark.parametrize(
  'body, named',
  [
    (lambda m, x: m.head(m.hidden(x)) if x.sum() > 0 else x, ['needs the values', __file__]),
    (lambda m, x: m.head(m.hidden(x)[x[:, 0] > 0]), ['needs the values', __file__]),
    (lambda m, x: m.head(m.hidden(x)) * x.numpy().sum(), ['needs the values', __file__]),
    (lambda m, x: torch.special.airy_ai(m.head(m.hidden(x))), ['airy_ai', __file__]),
    (lambda m, x: twice(m.head(m.hidden(x))), ['an operator that torchax', __file__]),
    (lambda m, x: torch.vmap(m.head)(m.hidden(x)), ['torch.vmap', __file__]),
    (lambda m, x: m.head(OF_NO_MODULE.copy_(m.hidden(x)[0])), ['writes into a tensor', __file__]),
    (lambda m, x: (m.head(m.hidden(x)), Cache()), ['Cache', 'use_cache=False']),
  ],
)
def test_what_jax_cannot_trace_is_named_with_the_line(body, named):
  assert_refused(named, ready, Small(body))


def written(tensor, values):
  tensor[:, 1:] = values[:, :-1]
  return tensor.add_(values)


def attended(module, x):
  """The first asks nothing, which gives zeros."""
  hidden, mask = module.hidden(x)[None], torch.arange(5)[:, None] > torch.arange(5)
  attention = torch.nn.functional.scaled_dot_product_attention
  return module.head(attention(hidden, hidden, hidden, mask)[0])


def checkpointed(reentrant):
  checkpoint = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=reentrant)
  return lambda m, x: checkpoint(m.head, m.hidden(x))


def with_vectors_of_0(module, x):
  """Swin v2 normalizes some where it pads."""
  hidden = module.hidden(x) * (torch.arange(5) > 2)[:, None]
  return module.head(torch.nn.functional.normalize(hidden, dim=-1))


@pytest.mark.parametrize(
  'body',
  [
    lambda m, x: m.head(torch.nn.functional.gelu(m.hidden(x))),
    lambda m, x: m.head(m.hidden(x).detach()),
    with_vectors_of_0,
    # Tensors from elsewhere are constants, and those on the CPU are of JAX.
    lambda m, x: m.head(OF_NO_MODULE * m.hidden(x)),
    lambda m, x: m.head(m.hidden(x) + torch.from_numpy(np.arange(8, dtype=np.float32))),
    lambda m, x: m.head(m.hidden(x))[:, torch.tensor([2, 0], device='cpu')],
    lambda m, x: m.head(written(torch.zeros(5, 8, device='cpu'), m.hidden(x))),
    lambda m, x: m.head(m.hidden(x).cpu()),
    lambda m, x: m.head(torch.conv1d(m.hidden(x)[:, None], 1 + OF_NO_MODULE[None, None, :1])[:, 0]),
    # Functions have the arguments of PyTorch.
    lambda m, x: torch.nn.functional.linear(
      bias=m.head.bias, weight=m.head.weight, input=m.hidden(x)
    ),
    attended,
    checkpointed(False),
    checkpointed(True),
  ],
)
def test_what_a_module_computes_is_what_pytorch_does(body):
  assert_runs(Small(body))


def test_attributes_hooks_and_parametrizations_are_those_of_the_module():
  assert_refused('lock', ready, Small(lock=threading.Lock()), kind=TypeError)
  scaled = Small(lambda m, x: m.head(m.hidden(x) * m.factor), factor=torch.arange(8.0))
  assert_runs(scaled)
  hooked = Small()
  hooked.hidden.register_forward_hook(lambda part, args, output: 2 * output)
  hooked.head.register_forward_pre_hook(lambda part, args: (args[0] + 1,))
  assert_runs(hooked)
  for normalize in (torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm):
    module = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(2))).eval()
    normalize(module[0])
    adapted = assert_runs(module)
    assert [layer.name for layer in adapted.spec] == ['1']
    assert 'combined with other parameters' in adapted.coverage().uncovered[0].reason


# The rest of the library on a module.


def test_a_module_is_allocated_scored_served_and_saved(tmp_path):
  adapted, params = glora_jax.torch.adapt(Small(), X, space=SPACE)
  variables = adapted.init(jax.random.key(0), params)
  loss, batch = glora_jax.classification(), (X.numpy(), np.arange(5) % 3)
  key = jax.random.key(1)
  given = glora_jax.allocate(adapted, variables, loss, [batch], budget=30, key=key, progress=False)
  scores = glora_jax.make_scorer(adapted, loss)(variables, given.genome[None], batch)
  assert np.isfinite(scores.loss).all()
  fixed, variables = ready(Small())
  glora_jax.save_adapter(tmp_path / 'a', fixed, variables)
  expected = fixed.apply(variables, X)
  again, loaded = glora_jax.load(tmp_path / 'a', Small(), X)
  assert_close(again.apply(loaded, X), expected)
  pool = glora_jax.Pool(adapted, params, rank=2)
  pool.load('a', tmp_path / 'a')
  answers = pool(X.numpy(), ['a', 'a', None, None, None])
  assert_close(answers[:2], expected[:2])
  assert_close(answers[2:], adapted.model.apply({'params': params}, X)[2:])


@pytest.mark.full
def test_eight_devices_run_and_fold_a_module_as_one():
  run_on_eight('programs/sharded_torch')
