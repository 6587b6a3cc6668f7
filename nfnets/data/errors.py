"""The errors of what is wrong with a dataset."""


class DatasetError(ValueError):
  """A dataset is missing, damaged or unsuitable; the message says which."""


class ExampleError(DatasetError):
  """An example is damaged; others of its dataset need not be."""
