"""PyTorch models in tiny sizes with random weights, whose layers were counted by hand.

Each function gives a `TorchExample`. PyTorch's kernels are [out, in], 'oi'; those of convolutions
[out, in, height, width], 'oiii'; GPT-2's `Conv1D` has [in, out].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import timm
import torch
import torchvision
import transformers
from comparing import vector
from hand_count import Counted, Kernel, Kernels, beside, registry
from timm.models._efficientnet_builder import decode_arch_def

from glora_jax.method.trace.events import CONVOLUTION, HEAD, ITEM_BY_ITEM, LOOKED_UP, TO_WORDS
from tests.peers import families

DEPTH, WIDTH, HIDDEN, HEADS, KV_HEADS, CHANNELS, VOCABULARY = 2, 16, 24, 4, 2, 6, 17
TIED = f'{LOOKED_UP}, also used in a matmul'

EXAMPLES, example = registry()


@dataclasses.dataclass(frozen=True)
class TorchExample(Counted):
  """A PyTorch module.

  Attributes:
    module: the module, in evaluation mode.
    inputs: positional arguments of its call.
    kernels: its kernels by path, counted by hand; heads are not among them.
    rows: how many layers they are, counted by hand.
    reasons: why the other matrices are not adapted, by path.
  """

  module: torch.nn.Module
  inputs: tuple[Any, ...]
  kernels: Kernels
  rows: int
  reasons: Mapping[str, str]


def as_numpy(tree):
  """A tree with PyTorch's tensors as NumPy's arrays, in half precision as float32."""

  def convert(leaf):
    if not isinstance(leaf, torch.Tensor):
      return leaf
    return (leaf.float() if leaf.is_floating_point() else leaf).detach().numpy()

  return jax.tree.map(convert, tree)


def outputs_of(module, *args, **kwargs):
  """What a module returns by PyTorch itself, as a vector."""
  with torch.no_grad():
    outputs = module(*args, **kwargs)
  return vector(as_numpy(outputs.to_tuple() if hasattr(outputs, 'to_tuple') else outputs))


def moved(module, size=0.2):
  """A module in evaluation mode, its parameters and statistics moved from their initial values."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for value in module.parameters():
      value += size * torch.randn(value.shape, generator=generator)
    for name, value in module.named_buffers():
      if name.endswith(('running_mean', 'running_var')):
        value += torch.rand(value.shape, generator=generator)
  return module.eval()


def language_model(kind, **fields):
  """A decoder of transformers in the sizes of `DECODER`, but for these fields."""
  torch.manual_seed(0)  # with this one every expert gets a token
  config = getattr(transformers, f'{kind}Config')(**DECODER | fields)
  return moved(getattr(transformers, f'{kind.removesuffix("Text")}ForCausalLM')(config))


def _counted(module, inputs, kernels, rows, reasons, **fields) -> TorchExample:
  """An example whose module is moved."""
  return TorchExample(
    module=moved(module),
    inputs=inputs,
    kernels=kernels,
    rows=rows,
    reasons=reasons,
    uncovered=tuple(path for path, reason in reasons.items() if reason != HEAD),
    **fields,
  )


def _linears(prefix: str, names: str, *, bias: bool) -> Kernels:
  """Linear modules below a prefix, their names as one text."""
  paths = [f'{prefix}/{name}/weight' for name in names.split()]
  return {path: beside('oi', path) if bias else Kernel('oi') for path in paths}


def _stack(prefix: str, names: str, *, bias: bool) -> Kernels:
  """The linear modules of `DEPTH` blocks."""
  layers = (_linears(f'{prefix}/{i}', names, bias=bias) for i in range(DEPTH))
  return {path: kernel for layer in layers for path, kernel in layer.items()}


def _normal(*shape: int) -> torch.Tensor:
  return torch.randn(shape, generator=torch.Generator().manual_seed(1))


IMAGES = _normal(2, 3, 32, 32)
TOKENS = torch.tensor([[1, 5, 10, 7], [3, 0, 2, 9]])
LANGUAGE = {
  'vocab_size': VOCABULARY,
  'hidden_size': WIDTH,
  'intermediate_size': HIDDEN,
  'num_hidden_layers': DEPTH,
  'num_attention_heads': HEADS,
  'max_position_embeddings': 32,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': 0,
}
DECODER = {**LANGUAGE, 'num_key_value_heads': KV_HEADS, 'head_dim': CHANNELS}
ATTENTION = 'self_attn/q_proj self_attn/k_proj self_attn/v_proj self_attn/o_proj'
GATED = 'mlp/gate_proj mlp/up_proj mlp/down_proj'


# timm and torchvision.


@example
def timm_vit():
  return _counted(
    families.build('timm_vit'),
    (IMAGES,),
    _stack('blocks', 'attn/qkv attn/proj mlp/fc1 mlp/fc2', bias=True),
    8,
    {
      'patch_embed/proj/weight': CONVOLUTION,
      'pos_embed': ITEM_BY_ITEM,
      'head/weight': HEAD,
    },
  )


@example
def timm_convnext():
  stages, dims = range(4), (8, 12, 16, 20)
  module = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=dims, num_classes=5)
  convolutions = [
    'stem/0/weight',
    *(f'stages/{i}/downsample/1/weight' for i in stages[1:]),
    *(f'stages/{i}/blocks/0/conv_dw/weight' for i in stages),
  ]
  kernels = {path: beside('oiii', path) for path in convolutions}
  for i in stages:
    kernels |= _linears(f'stages/{i}/blocks/0', 'mlp/fc1 mlp/fc2', bias=True)
  return _counted(module, (IMAGES,), kernels, 16, {'head/fc/weight': HEAD}, options={'convs': True})


@example
def timm_efficientnet():
  """A depthwise separable block and one that expands; a batch norm after each of their layers.

  Both squeeze and excite: two convolutions of one pixel, which have biases.
  """
  blocks = [['ds_r1_k3_s1_e1_c8_se0.5'], ['ir_r1_k3_s2_e2_c12_se0.5']]
  module = timm.models.EfficientNet(
    decode_arch_def(blocks), num_classes=5, num_features=20, stem_size=8
  )
  names = ['conv_stem', 'conv_head']
  names += [f'blocks/0/0/{name}' for name in ('conv_dw', 'conv_pw')]
  names += [f'blocks/1/0/{name}' for name in ('conv_pw', 'conv_dw', 'conv_pwl')]
  squeezes = [f'blocks/{i}/0/se/conv_{name}' for i in range(2) for name in ('reduce', 'expand')]
  kernels = {f'{name}/weight': Kernel('oiii') for name in names}
  kernels |= {f'{name}/weight': beside('oiii', f'{name}/weight') for name in squeezes}
  return _counted(
    module, (IMAGES,), kernels, 11, {'classifier/weight': HEAD}, options={'convs': True}
  )


@example
def torchvision_vit():
  """Has `nn.MultiheadAttention`, which keeps queries, keys and values in one parameter."""
  module = torchvision.models.VisionTransformer(32, 8, DEPTH, HEADS, WIDTH, HIDDEN, num_classes=5)
  kernels = {}
  for i in range(DEPTH):
    layer = f'encoder/layers/encoder_layer_{i}'
    attention = f'{layer}/self_attention'
    kernels[f'{attention}/in_proj_weight'] = Kernel('oi', f'{attention}/in_proj_bias')
    kernels |= _linears(layer, 'self_attention/out_proj mlp/0 mlp/3', bias=True)
  return _counted(
    module,
    (IMAGES,),
    kernels,
    8,
    {
      'conv_proj/weight': CONVOLUTION,
      'encoder/pos_embedding': ITEM_BY_ITEM,
      'heads/head/weight': HEAD,
    },
  )


# transformers: decoders.


def _decoder(module, names, rows, reasons, experts=None, bias=False):
  """A decoder with these linear modules in each block, and the kernels of its experts."""
  return _counted(
    module,
    (TOKENS,),
    _stack('model/layers', names, bias=bias) | (experts or {}),
    rows,
    reasons,
    kwargs={'use_cache': False},
  )


TABLE = 'model/embed_tokens/weight'
UNTIED = {TABLE: LOOKED_UP, 'lm_head/weight': TO_WORDS}


@example
def llama():
  return _decoder(language_model('Llama'), f'{ATTENTION} {GATED}', 14, UNTIED)


@example
def qwen3():
  """Head and embedding are one table, which PyTorch calls by its first name."""
  module = language_model('Qwen3', tie_word_embeddings=True)
  return _decoder(module, f'{ATTENTION} {GATED}', 14, {TABLE: TIED})


def _routed(kind, router='gate', axes='soi', bias=False, **fields):
  """Each expert is two layers, gate and up together and down; the router is one, too."""
  paths = [
    f'model/layers/{i}/mlp/experts/{name}'
    for i in range(DEPTH)
    for name in ('gate_up_proj', 'down_proj')
  ]
  return _decoder(
    language_model(kind, **fields, num_experts_per_tok=3),
    f'{ATTENTION} mlp/{router}',
    26,
    UNTIED,
    {path: Kernel(axes, f'{path}_bias' if bias else None) for path in paths},
    bias,
  )


@example
def mixtral():
  return _routed('Mixtral', num_local_experts=4)


@example
def gpt_oss():
  """Its kernels of experts are [expert, in, out], and have biases."""
  return _routed('GptOss', 'router', 'sio', bias=True, num_local_experts=4)


@example
def gpt2():
  config = transformers.GPT2Config(
    vocab_size=VOCABULARY,
    n_positions=32,
    n_embd=WIDTH,
    n_layer=DEPTH,
    n_head=HEADS,
    bos_token_id=1,
    eos_token_id=2,
  )
  paths = [
    f'transformer/h/{i}/{name}/weight'
    for i in range(DEPTH)
    for name in ('attn/c_attn', 'attn/c_proj', 'mlp/c_fc', 'mlp/c_proj')
  ]
  return _counted(
    transformers.GPT2LMHeadModel(config),
    (TOKENS,),
    {path: beside('io', path) for path in paths},
    8,
    {'transformer/wte/weight': TIED, 'transformer/wpe/weight': LOOKED_UP},
    kwargs={'use_cache': False},
  )


# transformers: encoders, and both halves.


@example
def bert():
  config = transformers.BertConfig(**LANGUAGE, num_labels=3)
  layer = ' '.join(f'attention/self/{name}' for name in ('query', 'key', 'value'))
  layer += ' attention/output/dense intermediate/dense output/dense'
  tables = ('word_embeddings', 'position_embeddings', 'token_type_embeddings')
  return _counted(
    transformers.BertForSequenceClassification(config),
    (TOKENS, TOKENS > 0),
    _stack('bert/encoder/layer', layer, bias=True) | _linears('bert/pooler', 'dense', bias=True),
    13,
    {
      **{f'bert/embeddings/{table}/weight': LOOKED_UP for table in tables},
      'classifier/weight': HEAD,
    },
    blind=r'attention/self/key',
  )


@example
def t5():
  """The first block of each half has a table of relative positions; one table embeds for both."""
  config = transformers.T5Config(
    vocab_size=VOCABULARY,
    d_model=WIDTH,
    d_kv=CHANNELS,
    d_ff=HIDDEN,
    num_layers=DEPTH,
    num_heads=HEADS,
  )
  own, cross = (
    ' '.join(f'{name}/{end}' for end in 'qkvo')
    for name in ('layer/0/SelfAttention', 'layer/1/EncDecAttention')
  )
  encoder, decoder = (
    ' '.join(f'layer/{i}/DenseReluDense/{end}' for end in ('wi', 'wo')) for i in (1, 2)
  )
  positions = 'block/0/layer/0/SelfAttention/relative_attention_bias/weight'
  return _counted(
    transformers.T5ForConditionalGeneration(config),
    (),
    _stack('encoder/block', f'{own} {encoder}', bias=False)
    | _stack('decoder/block', f'{own} {cross} {decoder}', bias=False),
    32,
    {
      'shared/weight': TIED,
      f'encoder/{positions}': LOOKED_UP,
      f'decoder/{positions}': LOOKED_UP,
    },
    kwargs={'input_ids': TOKENS, 'decoder_input_ids': TOKENS[:, :3], 'use_cache': False},
  )


@example
def clip():
  """Two towers, and a projection of each, which a scale multiplies afterwards."""
  config = transformers.CLIPConfig(
    text_config=LANGUAGE,
    vision_config={**families.HF_SHAPE, 'intermediate_size': HIDDEN},
    projection_dim=12,
  )
  names = [f'self_attn/{end}_proj' for end in ('q', 'k', 'v', 'out')]
  layer = ' '.join([*names, 'mlp/fc1', 'mlp/fc2'])
  projections = {f'{half}_projection/weight': Kernel('oi') for half in ('visual', 'text')}
  return _counted(
    transformers.CLIPModel(config),
    (TOKENS, IMAGES),
    _stack('vision_model/encoder/layers', layer, bias=True)
    | _stack('text_model/encoder/layers', layer, bias=True)
    | projections,
    26,
    {
      'text_model/embeddings/token_embedding/weight': LOOKED_UP,
      'text_model/embeddings/position_embedding/weight': LOOKED_UP,
      'vision_model/embeddings/position_embedding/weight': LOOKED_UP,
      'vision_model/embeddings/patch_embedding/weight': CONVOLUTION,
    },
    blind=r'self_attn/k_proj',
  )


@example
def vit():
  names = [f'attention/{end}_proj' for end in 'qkvo']
  return _counted(
    families.build('hf_vit'),
    (IMAGES,),
    _stack('vit/layers', ' '.join([*names, 'mlp/fc1', 'mlp/fc2']), bias=True),
    12,
    {
      'vit/embeddings/patch_embeddings/projection/weight': CONVOLUTION,
      'vit/embeddings/position_embeddings': ITEM_BY_ITEM,
      'classifier/weight': HEAD,
    },
    blind=r'attention/k_proj',
  )
