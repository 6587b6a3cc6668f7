"""The error of everything that is wrong with a dataset."""


class DatasetError(ValueError):
  """A dataset is missing, damaged or unsuitable; the message says which."""
