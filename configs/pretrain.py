"""Pretrains the backbone that ships in the package, on Fashion-MNIST's 60,000 training images.

  apt-get install dataset-fashion-mnist
  python -m glora_jax.main --config configs/pretrain.py --workdir runs/pretrain

writes `backbone.safetensors` and its test accuracy (`result.json`) into the workdir.
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      'job': 'pretrain',
      'seed': 0,
      'data': '/usr/share/datasets/fashion-mnist',
      'image_size': 28,
      'normalization': 'unit',
      'shift': 2,
      'model': {'patch_size': 7, 'width': 96, 'depth': 6, 'num_heads': 3, 'drop_path': 0.05},
      'training': {
        'epochs': 25,
        'batch_size': 128,
        'learning_rate': 1e-3,
        'initial_learning_rate': 1e-6,
        'final_learning_rate': 1e-6,
        'warmup_epochs': 2,
        'weight_decay': 0.05,
      },
    }
  )
