"""The smallest models that can be adapted."""

import flax.linen as nn
from flax import nnx


class Mlp(nn.Module):
  """Two linear layers, the last of which is the head; images become vectors."""

  hidden: int = 6
  classes: int = 3

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.hidden, name='fc')(x.reshape(len(x), -1))
    return nn.Dense(self.classes, name='head')(nn.gelu(x))


class LiveMlp(nnx.Module):
  """The same in NNX, with batch statistics and a random stream."""

  def __init__(self, inputs=6, hidden=8, classes=3):
    rngs = nnx.Rngs(0)
    self.fc = nnx.Linear(inputs, hidden, rngs=rngs)
    self.norm = nnx.BatchNorm(hidden, momentum=0.5, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(hidden, classes, rngs=rngs)

  def __call__(self, x):
    return self.head(self.dropout(nnx.gelu(self.norm(self.fc(x)))))
