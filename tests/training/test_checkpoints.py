"""Files of a run: training states, adapters, small results."""

import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from conftest import randomized, small_disk

import glora_jax
from glora_jax.method import adapter_file, presets
from glora_jax.method.genomes import canonicalize, random_genomes
from glora_jax.models.vit import ViT
from glora_jax.training.checkpoints import TrainingCheckpoints, _checksum
from glora_jax.training.loop import TrainState, fit
from glora_jax.training.recipe import Recipe

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


def test_training_states_round_trip_and_the_newest_counts(tmp_path):
  trainable = {'a': jnp.arange(3.0), 'b': {'c': jnp.ones((2, 2), jnp.int32)}}
  optimizer = optax.adamw(0.1)
  state = TrainState(trainable, optimizer.init(trainable), 5)
  with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
    assert checkpoints.latest(state) is None
    checkpoints.save(state)
    checkpoints.save(state._replace(step=9, trainable=randomized(trainable)))
    checkpoints.save(state._replace(step=9))  # an equal step is left alone
  with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
    restored = checkpoints.latest(state)
  assert restored.step == 9
  jax.tree.map(
    np.testing.assert_array_equal, restored, state._replace(step=9, trainable=randomized(trainable))
  )


def a_state(step):
  trainable = {
    'a': jax.random.normal(jax.random.key(step), (16, 12)),
    'b': {'c': jnp.arange(7.0) + step},
  }
  return TrainState(trainable, optax.adamw(0.1).init(trainable), step)


@pytest.fixture(scope='module')
def saved_states(tmp_path_factory):
  """A folder with the states 5 and 9."""
  folder = tmp_path_factory.mktemp('states') / 'states'
  with TrainingCheckpoints(folder) as checkpoints:
    for step in (5, 9):
      checkpoints.save(a_state(step))
  return folder


def garbled(content):
  middle = len(content) // 2
  return (
    content[:middle]
    + bytes(byte ^ 0x5A for byte in content[middle : middle + 3])
    + content[middle + 3 :]
  )


@pytest.mark.parametrize(
  'damage',
  [garbled, lambda content: content[: len(content) // 2], None],
  ids=['garbled', 'cut off', 'gone'],
)
def test_whatever_file_of_the_newest_state_is_damaged_what_comes_back_is_bit_for_bit_a_state_that_was_saved(
  saved_states, tmp_path, damage, caplog
):
  fallen_back = 0
  for number, original in enumerate(
    sorted(path for path in (saved_states / '9').rglob('*') if path.is_file())
  ):
    folder = shutil.copytree(saved_states, tmp_path / str(number))
    path = folder / original.relative_to(saved_states)
    path.unlink() if damage is None else path.write_bytes(damage(original.read_bytes()))
    caplog.clear()
    with TrainingCheckpoints(folder) as checkpoints:
      state = checkpoints.latest(a_state(0))
      ours = [
        record.getMessage()
        for record in caplog.records
        if record.name == 'glora_jax.training.checkpoints'
      ]
      jax.tree.map(np.testing.assert_array_equal, state, a_state(state.step))
      if state.step == 9:  # orbax has some things twice
        assert not ours
        continue
      fallen_back += 1
      assert state.step == 5
      assert len(ours) == 1
      assert f'step 9 in {folder} is damaged' in ours[0]
      assert 'going on from step 5' in ours[0]
      checkpoints.save(a_state(9))  # training comes there again
    with TrainingCheckpoints(folder) as checkpoints:
      jax.tree.map(np.testing.assert_array_equal, checkpoints.latest(a_state(0)), a_state(9))
  assert fallen_back >= 2  # the numbers themselves, and what says where they are


def test_states_that_are_all_damaged_are_one_sentence_and_stay_where_they_are(
  saved_states, tmp_path
):
  folder = shutil.copytree(saved_states, tmp_path / 'states')
  for path in folder.rglob('manifest.ocdbt'):
    path.write_bytes(b'')
  before = sorted(folder.rglob('*'))
  with (
    TrainingCheckpoints(folder) as checkpoints,
    pytest.raises(
      ValueError,
      match=r'None of the training states in .*states can be read \(steps 9, 5; 9: .*Remove that folder',
    ),
  ):
    checkpoints.latest(a_state(0))
  assert sorted(folder.rglob('*')) == before


def test_the_checksum_sees_every_bit():
  rng = np.random.default_rng(0)
  tree = [
    rng.normal(size=7).astype(kind)
    for kind in (np.float32, jnp.bfloat16, np.int32, np.int8, np.float16)
  ]
  sums = []
  for number, leaf in enumerate(tree):
    for bit in range(8 * leaf.nbytes):
      changed = np.frombuffer(leaf.tobytes(), np.uint8).copy()
      changed[bit // 8] ^= 1 << bit % 8
      sums.append(int(_checksum([*tree[:number], changed.view(leaf.dtype), *tree[number + 1 :]])))
  assert len(sums) == 8 * sum(leaf.nbytes for leaf in tree)
  assert int(_checksum(tree)) not in sums
  assert int(_checksum([np.array([True, False])])) != int(_checksum([np.array([True, True])]))


def test_training_goes_on_from_the_state_before_a_damaged_one_to_the_same_bits(tmp_path):
  """Every dispatch is saved; the newest state is damaged after a break."""
  x = jax.random.normal(jax.random.key(0), (32, 5))
  loss = lambda w, frozen, x, y, key: (
    jnp.mean((x @ w - y) ** 2) + jnp.mean(w * jax.random.normal(key, w.shape)),
    {},
  )
  run = lambda **options: fit(
    loss,
    jnp.zeros(5),
    {},
    x,
    jnp.arange(32),
    Recipe(epochs=6, batch_size=8, warmup_epochs=1),
    jax.random.key(1),
    steps_per_dispatch=4,
    progress=False,
    **options,
  )
  template = TrainState(
    jnp.zeros(5),
    Recipe(epochs=6, batch_size=8, warmup_epochs=1).optimizer(32).init(jnp.zeros(5)),
    0,
  )
  whole = run()
  with TrainingCheckpoints(tmp_path) as checkpoints:
    run(stop_epoch=3, on_dispatch=lambda state, _: checkpoints.save(state))
  for path in (tmp_path / '12').rglob('d/*'):
    path.write_bytes(garbled(path.read_bytes()))
  with TrainingCheckpoints(tmp_path) as checkpoints:
    state = checkpoints.latest(template)
    assert state.step == 8
    resumed = run(state=state, on_dispatch=lambda state, _: checkpoints.save(state))
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  with TrainingCheckpoints(tmp_path) as checkpoints:
    jax.tree.map(np.testing.assert_array_equal, checkpoints.latest(template), whole)


def test_a_full_disk_is_a_sentence_that_comes_from_the_background_and_older_states_stay(tmp_path):
  with small_disk(tmp_path, '200k') as remount:
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      checkpoints.save(a_state(5))
    large = lambda step: TrainState(jax.random.normal(jax.random.key(step), (400, 400)), (), step)
    with (
      pytest.raises(
        OSError,
        match=r'The training state cannot be written to .*states \(No space left on device\)\. .*make room',
      ),
      TrainingCheckpoints(tmp_path / 'states') as checkpoints,
    ):
      checkpoints.save(large(9))
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      jax.tree.map(np.testing.assert_array_equal, checkpoints.latest(a_state(0)), a_state(5))
    remount('size=8m')
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      checkpoints.save(large(9))
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      jax.tree.map(np.testing.assert_array_equal, checkpoints.latest(large(0)), large(9))


@pytest.fixture(scope='module', params=[True, False], ids=['tied', 'untied'])
def subnet(request):
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2)
  adapted = glora_jax.adapt(model, IMAGES, space=glora_jax.SearchSpace((2, 4), tied=request.param))
  variables = randomized(
    adapted.init(jax.random.key(0), model.init(jax.random.key(1), IMAGES)['params'])
  )
  return adapted, variables


def test_an_adapter_gives_the_same_logits_on_a_fresh_base(subnet, tmp_path):
  adapted, variables = subnet
  base = {**variables['params'], 'head': jax.tree.map(jnp.zeros_like, variables['params']['head'])}
  apply = jax.jit(lambda v, g: adapted.apply(v, IMAGES, genome=g))
  for seed in range(5):
    genome = random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0]
    adapter_file.save_adapter(tmp_path / 'a.safetensors', adapted, variables, genome, task='x')
    loaded, found = adapter_file.load_adapter(tmp_path / 'a.safetensors', adapted, base)
    np.testing.assert_array_equal(found, canonicalize(adapted.spec, genome))
    np.testing.assert_array_equal(apply(loaded, found), apply(variables, genome))


def test_an_adapter_holds_exactly_the_trained_numbers_and_the_heads(subnet, tmp_path):
  adapted, variables = subnet
  for seed in range(5):
    genome = random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0]
    adapter_file.save_adapter(tmp_path / 'a.safetensors', adapted, variables, genome)
    tensors = safetensors.numpy.load_file(tmp_path / 'a.safetensors')
    supports = sum(value.size for name, value in tensors.items() if name.startswith('glora/'))
    assert supports == adapted.count_params(genome)
    assert {name for name in tensors if not name.startswith('glora/')} == {
      'params/head/kernel',
      'params/head/bias',
    }


def test_adapters_of_another_base_model_or_space_are_refused(subnet, tmp_path):
  adapted, variables = subnet
  path = tmp_path / 'a.safetensors'
  adapter_file.save_adapter(path, adapted, variables, presets.preset(adapted.spec, 'full'))
  with pytest.raises(ValueError, match='trained on other base weights'):
    adapter_file.load_adapter(
      path, adapted, {**variables['params'], 'cls': variables['params']['cls'] + 1}
    )
  with pytest.raises(
    ValueError,
    match=r'another model or search space\. It has 8 layers, and this model 8; the first that differs is '
    r"layer 0: Layer\(name='blocks/attn/qkv\[0\]'.*ranks=\(2, 4\).*there, .*ranks=\(4,\).*here",
  ):
    adapter_file.load_adapter(path, glora_jax.adapt(adapted.model, IMAGES), variables['params'])
  other_head = adapted.model.clone(num_classes=4)
  params = {**variables['params'], 'head': {'kernel': jnp.zeros((12, 4)), 'bias': jnp.zeros(4)}}
  space_of = adapted.spec.layers[0].space
  with pytest.raises(ValueError, match=r'has the heads head/bias \(3,\)'):
    adapter_file.load_adapter(path, glora_jax.adapt(other_head, IMAGES, space=space_of), params)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match='damaged'):
    adapter_file.load_adapter(path, adapted, variables['params'])


class WithStatistics(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train, name='norm')(nn.Dense(6, name='hidden')(x))
    return nn.Dense(2, name='head')(x)


def test_an_adapter_brings_the_batch_statistics_that_training_left(tmp_path):
  model, x = WithStatistics(), jax.random.normal(jax.random.key(0), (8, 4))
  adapted = glora_jax.adapt(model, x)
  start = model.init(jax.random.key(1), x)
  variables = {
    **adapted.init(jax.random.key(2), start['params']),
    'batch_stats': start['batch_stats'],
  }
  variables['glora'] = randomized(variables['glora'])
  genome = presets.preset(adapted.spec, 'full')
  _, updated = adapted.apply(variables, x, genome=genome, train=True, mutable=['batch_stats'])
  variables |= updated
  adapter_file.save_adapter(tmp_path / 'a.safetensors', adapted, variables, genome)
  loaded, found = adapter_file.load_adapter(tmp_path / 'a.safetensors', adapted, start['params'])
  np.testing.assert_array_equal(
    adapted.apply(loaded, x, genome=found), adapted.apply(variables, x, genome=genome)
  )


def test_a_batch_in_which_each_example_has_its_own_adapter_equals_one_by_one(subnet, tmp_path):
  adapted, variables = subnet
  images = jax.random.normal(jax.random.key(5), (3, 16, 16, 3))
  adapters = []
  for seed in range(3):
    mine = {
      **variables,
      'glora': randomized(variables['glora'], seed),
      'params': {**variables['params'], 'head': randomized(variables['params']['head'], seed)},
    }
    genome = random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0]
    adapter_file.save_adapter(tmp_path / f'{seed}.safetensors', adapted, mine, genome)
    adapters.append(
      adapter_file.load_adapter(tmp_path / f'{seed}.safetensors', adapted, variables['params'])
    )
  one_by_one = [
    adapted.apply(v, image[None], genome=g)[0]
    for (v, g), image in zip(adapters, images, strict=True)
  ]
  trainable = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), *(adapted.split(v)[0] for v, _ in adapters)
  )
  frozen = adapted.split(variables)[1]
  genomes = np.stack([g for _, g in adapters])
  run = lambda t, genome, image: adapted.apply(adapted.join(t, frozen), image[None], genome=genome)[
    0
  ]
  np.testing.assert_allclose(
    jax.jit(jax.vmap(run))(trainable, genomes, images), np.stack(one_by_one), atol=1e-5
  )


def test_adapters_of_boxed_models_round_trip(tmp_path):
  model = nn.Dense(
    6, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
  )
  x = jnp.ones((2, 4))
  adapted = glora_jax.adapt(model, x)
  variables = adapted.init(jax.random.key(0), model.init(jax.random.key(1), x)['params'])
  variables['glora'] = randomized(variables['glora'])
  genome = presets.preset(adapted.spec, 'full')
  adapter_file.save_adapter(tmp_path / 'a.safetensors', adapted, variables, genome)
  loaded, found = adapter_file.load_adapter(
    tmp_path / 'a.safetensors', adapted, variables['params']
  )
  assert loaded['glora']['B_up'].names == (None, 'model')
  np.testing.assert_array_equal(
    adapted.apply(loaded, x, genome=found), adapted.apply(variables, x, genome=genome)
  )
