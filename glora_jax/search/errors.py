"""What a search or an allocation finds wrong with a loss, for a run to catch."""


class NonFiniteError(ValueError):
  """A loss or a gradient is not finite, as that of a model whose training has diverged."""


class NoGradientError(ValueError):
  """No layer could change a loss, as under a head of zeros, or one certain of every label."""
