"""Errors of a search or an allocation about a loss, for a run to catch."""


class NonFiniteError(ValueError):
  """A loss or a gradient is not finite, as after a training that diverged."""


class NoGradientError(ValueError):
  """No layer can change a loss, as under a head of zeros or one certain of every label."""
