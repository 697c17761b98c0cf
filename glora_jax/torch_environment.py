"""PyTorch's operators on JAX arrays: an environment of torchax, with those that it lacks."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchax.interop
import torchax.ops.jaten
import torchax.ops.jtorch


@contextlib.contextmanager
def on_jax(key: jax.Array) -> Generator[Any]:
  """Where PyTorch's operators compute on JAX arrays, with random numbers from a key.

  torchax would draw from its global key. A trace would replace that by a tracer, and a compiled
  program would draw the same numbers in each call. `override_property` replaces it by `key`.
  """
  environment = shared_environment()
  with warnings.catch_warnings():  # PyTorch's integers have 64 bits, JAX's 32
    warnings.filterwarnings('ignore', 'Explicitly requested dtype int64')
    with environment.override_property(prng=key), environment, torch.device('jax'), _compiling():
      yield environment


@functools.cache
def shared_environment() -> Any:
  """An environment of torchax, not the one that other users of torchax share."""
  environment = _Environment()
  operators = {
    torch.nn.functional.linear: _linear,
    torch.nn.functional.normalize: _normalize,
    torch.ops.aten.convolution: _convolve,
    torch.ops.aten._upsample_bilinear2d_aa: functools.partial(_resize, 'linear'),
    torch.ops.aten._upsample_bicubic2d_aa: functools.partial(_resize, 'cubic'),
  }
  for operator, function in operators.items():
    environment.override_op_definition(operator, functools.partial(_on_arrays, function))
  attention = torch.nn.functional.scaled_dot_product_attention
  environment.override_op_definition(attention, _attention)
  return environment


def as_jax(tree: Any) -> Any:
  """Arguments in which PyTorch's and NumPy's arrays are JAX's."""

  def convert(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
      return shared_environment().t2j_iso(leaf)
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf

  return jax.tree.map(convert, tree)


def to_jax(tensor: torch.Tensor) -> jax.Array:
  """A copy of a tensor that is not committed to the CPU, as `from_dlpack`'s array is."""
  with jax.ensure_compile_time_eval():
    return jnp.array(np.asarray(jnp.from_dlpack(tensor.detach().cpu().contiguous())), copy=True)


def to_torch(array: Any) -> torch.Tensor:
  """An array as a tensor on the CPU, which may share its memory."""
  return torch.from_dlpack(jax.device_put(jnp.asarray(array), jax.devices('cpu')[0]))


def shape_of(tensor: torch.Tensor) -> jax.ShapeDtypeStruct:
  """The shape of a tensor, and the dtype that JAX has for it."""
  dtype = torchax.interop.mappings.t2j_dtype(tensor.dtype)
  return jax.ShapeDtypeStruct(tuple(tensor.shape), jax.dtypes.canonicalize_dtype(dtype))


@contextlib.contextmanager
def _compiling() -> Generator[None]:
  """Where `torch.compiler.is_compiling()` is true, as under `torch.compile`.

  Models then skip code that only runs outside of a trace. Those of transformers keep tensors in
  caches of functions (position indices of BEiT, coordinates of DINOv3), which all models share: a
  tensor of PyTorch in there would meet arrays of JAX in the next trace, and a traced array
  PyTorch's.
  """
  before = torch.compiler._is_compiling_flag
  torch.compiler._is_compiling_flag = True
  try:
    yield
  finally:
    torch.compiler._is_compiling_flag = before


class _Environment(torchax.tensor.Environment):
  """torchax's environment, with JAX for the only device.

  By itself torchax raises an error if a tensor of PyTorch meets an array of JAX. Here that tensor
  is a constant: an attribute of the module, a global, `torch.from_numpy`. A tensor that the module
  creates on the CPU, or moves there, is JAX's, so that arrays can be written into it.
  """

  def t2j_iso(self, torchtensors: Any) -> Any:
    def constant(tensor: torch.Tensor) -> torch.Tensor:
      is_of_jax = isinstance(tensor, torchax.tensor.Tensor | torchax.view.View)
      if is_of_jax or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return tensor
      return torchax.tensor.Tensor(to_jax(tensor), self)

    tree_map = torch.utils._pytree.tree_map_only
    return super().t2j_iso(tree_map(torch.Tensor, constant, torchtensors))

  def _should_use_torchax_tensor(self, device: Any) -> bool:
    return True

  def _is_same_device(self, the_tensor: torch.Tensor, new_device: Any) -> bool:
    is_of_jax = isinstance(the_tensor, torchax.tensor.Tensor)
    return is_of_jax or super()._is_same_device(the_tensor, new_device)


def _on_arrays(function: Callable[..., jax.Array], *args: Any, **kwargs: Any) -> Any:
  """Calls a function of arrays with tensors."""
  args, kwargs = shared_environment().t2j_iso((args, kwargs))
  return shared_environment().j2t_iso(function(*args, **kwargs))


def _linear(input: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
  """PyTorch's `linear` with its names of arguments, by which timm's EVA passes them."""
  return torchax.ops.jtorch.functional_linear(input, weight, bias)


def _normalize(
  input: jax.Array, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> jax.Array:
  """PyTorch's `normalize`; the gradient of a norm of 0 is 0, not NaN as in torchax."""
  del out
  is_zero = (input == 0).all(dim, keepdims=True)  # Swin v2 pads with it, for instance
  norms = jnp.linalg.norm(jnp.where(is_zero, 1, input), p, dim, keepdims=True)
  return input / jnp.maximum(jnp.where(is_zero, 0, norms), eps)


def _resize(
  method: str, images: jax.Array, size: Sequence[int], align_corners: bool, *scales: Any
) -> jax.Array:
  """PyTorch's antialiased resizing; torchax calls a function that JAX no longer has."""
  del align_corners, scales  # PyTorch has no aligned corners here
  return jax.image.resize(images, (*images.shape[:2], *size), method, antialias=True)


def _attention(
  query: torch.Tensor,
  key: torch.Tensor,
  value: torch.Tensor,
  attn_mask: torch.Tensor | None = None,
  *options: Any,
  **named_options: Any,
) -> torch.Tensor:
  """PyTorch's attention: 0 for a query that may not attend to any key, not NaN as in torchax."""
  attend = functools.partial(torchax.ops.jtorch.scaled_dot_product_attention, query, key, value)
  if attn_mask is None or attn_mask.dtype != torch.bool:
    return attend(attn_mask, *options, **named_options)
  attends = attn_mask.any(-1, keepdim=True)
  return torch.where(attends, attend(attn_mask | ~attends, *options, **named_options), 0)


def _convolve(
  inputs: jax.Array, weight: jax.Array, bias: jax.Array | None, *options: Any
) -> jax.Array:
  """The operator `aten::convolution`, computed with channels last."""
  is_transposed, is_batch = options[3], inputs.ndim == weight.ndim
  is_plain = is_batch and not is_transposed
  function = _convolve_channels_last if is_plain else torchax.ops.jaten._aten_convolution
  return function(inputs, weight, bias, *options)


# In a loop, as training steps are, XLA on a CPU has a fast convolution only for channels last. With
# PyTorch's order that of a ViT-S's patches takes half of a step's time (benchmarks/torch_step.py;
# tests/peers/test_torch.py looks at the order in the compiled program).
def _convolve_channels_last(
  inputs: jax.Array,
  weight: jax.Array,
  bias: jax.Array | None,
  stride: Sequence[int],
  padding: Sequence[int],
  dilation: Sequence[int],
  transposed: bool,
  output_padding: Sequence[int],
  groups: int,
) -> jax.Array:
  """A convolution of inputs [batch, channel, ...] that is not transposed."""
  del transposed, output_padding
  axes = 'DHW'[-(weight.ndim - 2) :]
  outputs = jax.lax.conv_general_dilated(
    jnp.moveaxis(inputs, 1, -1),
    jnp.moveaxis(weight, (0, 1), (-1, -2)),
    stride,
    [(size, size) for size in np.broadcast_to(padding, len(axes))],
    rhs_dilation=dilation,
    feature_group_count=groups,
    dimension_numbers=(f'N{axes}C', f'{axes}IO', f'N{axes}C'),
  )
  return jnp.moveaxis(outputs if bias is None else outputs + bias, -1, 1)
