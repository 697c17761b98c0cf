"""A Vision Transformer in NumPy, one image and one head at a time: what `ViT` must compute.

Nothing is compiled, so that a test may compare as many models as it likes.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)

ACTIVATIONS = {
  'gelu': lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
  'gelu_tanh': lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
  'quick_gelu': lambda x: x / (1 + np.exp(-1.702 * x)),
}


def logits(model, params, images):
  """Logits of `model`, float64 [batch, classes], or features where it has no head."""
  return np.stack([_logits(model, params, np.asarray(image, np.float64)) for image in images])


def _logits(model, params, image):
  x = _patches(image, model.patch_size) @ params['embed']['kernel'].reshape(-1, model.width)
  x = x + params['embed'].get('bias', 0)
  if model.class_token:
    x = np.concatenate([params['cls'][0], x])
  x = x + params['pos_embed'][0]
  if model.pre_norm:
    x = _norm(model, params['pre_norm'], x)
  for number in range(model.depth):
    x = _block(model, _index(params['blocks'], number), x)
  if not model.norm_after_pool:
    x = _norm(model, params['norm'], x)
  mean = x[int(model.class_token) :].mean(0)
  x = {'token': [x[0]], 'gap': [mean], 'token+gap': [x[0], mean]}[model.pool]
  x = np.concatenate(x)
  if model.norm_after_pool:
    x = _norm(model, params['norm'], x)
  if model.pre_logits is not None:
    x = np.tanh(_dense(params['pre_logits'], x))
  return _dense(params['head'], x) if model.num_classes else x


def _patches(image, side):
  rows, columns = image.shape[0] // side, image.shape[1] // side
  return np.stack(
    [
      image[row * side : (row + 1) * side, column * side : (column + 1) * side].ravel()
      for row in range(rows)
      for column in range(columns)
    ]
  )


def _index(tree, number):
  if isinstance(tree, dict):
    return {name: _index(value, number) for name, value in tree.items()}
  return np.asarray(tree[number], np.float64)


def _block(model, params, x):
  y = _attention(model, params['attn'], _norm(model, params['norm1'], x))
  x = x + y * params.get('scale1', {'gamma': 1})['gamma']
  y = _norm(model, params['norm2'], x)
  y = _dense(params['mlp']['fc2'], ACTIVATIONS[model.activation](_dense(params['mlp']['fc1'], y)))
  return x + y * params.get('scale2', {'gamma': 1})['gamma']


def _attention(model, params, x):
  heads = []
  qkv = _dense(params['qkv'], x).reshape(len(x), 3, model.num_heads, -1)
  for head in range(model.num_heads):
    q, k, v = (qkv[:, part, head] for part in range(3))
    similarity = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
    heads.append(similarity / similarity.sum(1, keepdims=True) @ v)
  return _dense(params['proj'], np.concatenate(heads, 1))


def _dense(params, x):
  return x @ params['kernel'] + params['bias']


def _norm(model, params, x):
  deviation = np.sqrt(x.var(-1, keepdims=True) + model.norm_eps)
  return (x - x.mean(-1, keepdims=True)) / deviation * params['scale'] + params['bias']
