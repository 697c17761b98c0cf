"""Small random models of timm and transformers, one of each family that our ViT covers."""

import json
import os

import numpy as np
import safetensors.torch
import timm
import torch
import transformers

SHAPE = {
  'img_size': 32,
  'patch_size': 8,
  'embed_dim': 16,
  'depth': 2,
  'num_heads': 4,
  'num_classes': 5,
}
HF_SHAPE = {
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'image_size': 32,
  'patch_size': 8,
  'num_labels': 5,
}


TIMM = {  # fields beside `SHAPE`
  'timm_vit': {},
  'timm_deit3': {'no_embed_class': True, 'init_values': 1e-5},
  'timm_augreg_gap': {'class_token': False, 'global_pool': 'avg'},
  'timm_gap_with_class_token': {'global_pool': 'avg'},
  'timm_gap_norm_first': {'class_token': False, 'global_pool': 'avg', 'fc_norm': False},
  'timm_clip': {'pre_norm': True, 'norm_layer': torch.nn.LayerNorm},
  'timm_features': {'num_classes': 0},
}
HF = {  # the beginning of the config's name, the model, and fields beside `HF_SHAPE`
  'hf_vit': ('ViT', 'ForImageClassification', {'intermediate_size': 48}),
  'hf_vit_model': ('ViT', 'Model', {'intermediate_size': 64}),
  'hf_dinov2': ('Dinov2', 'ForImageClassification', {'mlp_ratio': 2}),
  'hf_dinov2_model': ('Dinov2', 'Model', {}),
}
FAMILIES = (*TIMM, *HF)


def build(name: str) -> torch.nn.Module:
  """The family's model, every parameter moved away from its initial value, in evaluation mode."""
  torch.manual_seed(sorted(FAMILIES).index(name))
  if name in TIMM:
    model = timm.models.vision_transformer.VisionTransformer(**{**SHAPE, **TIMM[name]})
  else:
    kind, head, fields = HF[name]
    config = getattr(transformers, f'{kind}Config')(**{**HF_SHAPE, **fields})
    model = getattr(transformers, f'{kind}{head}')(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.2)
  return model.eval()


def write(model: torch.nn.Module, folder) -> None:
  """Saves the model as its own library does."""
  if isinstance(model, transformers.PreTrainedModel):
    model.save_pretrained(folder)
  else:
    os.makedirs(folder, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), f'{folder}/model.safetensors')
    # As on the hub, where `config.json` names the architecture and what differs from it.
    config = {
      'architecture': 'vit_tiny_patch16_224',
      'model_args': {'num_heads': SHAPE['num_heads']},
    }
    with open(f'{folder}/config.json', 'w') as file:
      json.dump(config, file)


def logits(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
  """Logits, or pooled features of a model without head, of images [batch, height, width, 3]."""
  images = torch.tensor(images).permute(0, 3, 1, 2)
  with torch.no_grad():
    interpolates = isinstance(model, transformers.ViTPreTrainedModel)
    fields = {'interpolate_pos_encoding': True} if interpolates else {}
    output = model(images, **fields)
  if isinstance(output, torch.Tensor):
    return output.numpy()
  return (output.logits if 'logits' in output else output.pooler_output).numpy()
