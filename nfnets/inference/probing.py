"""What a network's features are worth: simple classifiers on its embeddings."""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple

import haiku as hk
import numpy as np
from scipy import stats
from sklearn import linear_model, model_selection, neighbors, preprocessing
import threadpoolctl

from nfnets import weights, zoo
from nfnets.inference import card, embeddings, measures
from nfnets.inference.embeddings import Embeddings

# Inverse strengths of the penalty that cross-validation chooses from. Features
# are standardized and many, so that the best are small.
_STRENGTHS = tuple(float(c) for c in np.logspace(-5, 1, 7))
# Where there is one example of a class, nothing can be held out.
FIXED_STRENGTH = 0.01
_FOLDS = 5
_MAX_ITERATIONS = 1000


class ProbeError(ValueError):
  """The probe cannot be made; the message says why, in one line."""


class Row(NamedTuple):
  """How well classifiers do with some images per class.

  Attributes:
    shots: How many; None for all.
    draws: How many times they were drawn.
    logistic: Of logistic regression.
    neighbors: Of the nearest neighbours.
    head: The regression of the last draw.
  """

  shots: int | None
  draws: int
  logistic: 'Estimate'
  neighbors: 'Estimate'
  head: 'Head'


class Head(NamedTuple):
  """A linear layer: logits = features @ w + b; float64 [C, K] and [K]."""

  w: np.ndarray
  b: np.ndarray

  def accuracy(self, test: Embeddings) -> float:
    predicted = np.argmax(test.features @ self.w + self.b, axis=1)
    return float(np.mean(predicted == test.labels))


class Estimate(NamedTuple):
  """An accuracy with an interval of 95 %."""

  accuracy: float
  low: float
  high: float


def measure(
  train: Embeddings,
  test: Embeddings,
  num_classes: int,
  shots: Sequence[int],
  num_neighbors: int,
  draws: int = 5,
  seed: int = 0,
) -> Iterator[Row]:
  """Fits classifiers to some of the training images and to all.

  Args:
    train: examples of every class.
    test: what they are tested on.
    num_classes: K, at least 2.
    shots: how many training images per class. Where no class has more than
      that, this is the same as all, and left out.
    num_neighbors: how many neighbours vote.
    draws: how often images are drawn.
    seed: decides on the draws, at least 0.

  Yields:
    A row for each number of shots, and one for all.

  Raises:
    ProbeError: if a class has no example.
  """
  largest = np.bincount(train.labels).max()
  for count in (*(n for n in shots if n < largest), None):
    logistic, voted = [], []
    for i in range(1 if count is None else draws):
      part = train
      if count is not None:
        chosen = draw(train.labels, count, (seed, count, i))
        part = Embeddings(*(values[chosen] for values in train))
      head = fit(part, num_classes)
      logistic.append(head.accuracy(test))
      voted.append(neighbors_accuracy(part, test, num_neighbors))
    num_test = len(test.labels)
    yield Row(
      count,
      len(logistic),
      estimate(logistic, num_test),
      estimate(voted, num_test),
      head,
    )


def draw(labels: np.ndarray, shots: int, seed: Sequence[int]) -> np.ndarray:
  """Draws examples of every class, without replacement.

  Args:
    labels: int [N].
    shots: how many of each class; all, of a class that has fewer.
    seed: whole numbers that decide on them.

  Returns:
    Their numbers, int64, in ascending order.
  """
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(labels))
  chosen = [order[labels[order] == c][:shots] for c in np.unique(labels)]
  return np.sort(np.concatenate(chosen))


def fit(train: Embeddings, num_classes: int) -> Head:
  """Fits multinomial logistic regression on standardized features.

  The strength of its L2 penalty is chosen by stratified cross-validation, by
  the log-loss, or is `FIXED_STRENGTH` where a class has a single example.

  Args:
    train: examples of every class.
    num_classes: K, at least 2.

  Returns:
    The layer, with the standardization in it. For two classes, which have one
    weight per feature, the logits are half of it and its negative.

  Raises:
    ProbeError: if a class has no example.
  """
  counts = np.bincount(train.labels, minlength=num_classes)
  if not counts.all():
    raise ProbeError(
      f'There is no image to learn class {int(np.argmin(counts))} from.'
    )
  # More precise than the float32 that they are.
  scaler = preprocessing.StandardScaler()
  features = scaler.fit_transform(train.features.astype(np.float64))
  folds = min(_FOLDS, int(counts.min()))
  if folds < 2:
    fitted = linear_model.LogisticRegression(
      C=FIXED_STRENGTH, max_iter=_MAX_ITERATIONS
    )
  else:
    fitted = linear_model.LogisticRegressionCV(
      Cs=_STRENGTHS,
      l1_ratios=(0.0,),
      cv=model_selection.StratifiedKFold(folds, shuffle=True, random_state=0),
      scoring='neg_log_loss',
      max_iter=_MAX_ITERATIONS,
      use_legacy_attributes=False,
    )
  # For problems of this size more threads are little faster, and thirty times
  # slower where others are at work.
  with threadpoolctl.threadpool_limits(1):
    fitted.fit(features, train.labels)
  w, b = fitted.coef_.T, fitted.intercept_
  if num_classes == 2:
    w, b = np.concatenate([-w, w], axis=1) / 2, np.concatenate([-b, b]) / 2
  w = w / scaler.scale_[:, None]
  return Head(w, b - scaler.mean_ @ w)


def neighbors_accuracy(
  train: Embeddings, test: Embeddings, count: int
) -> float:
  """Returns the accuracy of a vote of the nearest neighbours, by cosine.

  Args:
    train: whose labels vote.
    test: what they vote on.
    count: how many neighbours; all, where there are fewer.
  """
  voters = neighbors.KNeighborsClassifier(
    min(count, len(train.labels)), metric='cosine', weights='distance'
  )
  voters.fit(train.features, train.labels)
  with threadpoolctl.threadpool_limits(1):
    predicted = voters.predict(test.features)
  return float(np.mean(predicted == test.labels))


def estimate(accuracies: Sequence[float], num_test: int) -> Estimate:
  """Returns the mean of accuracies on the same test images.

  The interval has both that there are few test images (Wilson's, of the mean)
  and that there are few draws of training images (Student's t), added as
  independent errors are.

  Args:
    accuracies: of several draws, or of one that has all images there are.
    num_test: the number of test images.
  """
  mean, draws = float(np.mean(accuracies)), len(accuracies)
  low, high = measures.wilson(mean * num_test, num_test)
  spread = 0.0
  if draws > 1:
    error = np.std(accuracies, ddof=1) / np.sqrt(draws)
    spread = stats.t.ppf(0.975, draws - 1) * error
  return Estimate(
    mean,
    max(0.0, mean - float(np.hypot(mean - low, spread))),
    min(1.0, mean + float(np.hypot(high - mean, spread))),
  )


def save(
  path: str,
  model: zoo.Model,
  params: hk.Params,
  state: hk.State,
  head: Head,
  names: Sequence[str],
  **others: Any,
) -> None:
  """Writes a network with another last layer, which says what its classes are.

  If the file is called weights.safetensors, with its model card beside it.

  Args:
    path: ends in .npz or .safetensors.
    model: the network.
    params: its parameters.
    state: its state.
    head: the last layer.
    names: of its classes.
    **others: more to say in the file; see `weights.metadata`.

  Raises:
    OSError: if it cannot be written.
  """
  layer = {'w': np.float32(head.w), 'b': np.float32(head.b)}
  params = {**params, embeddings.head(model): layer}
  model = zoo.with_num_classes(model, len(names))
  model = dataclasses.replace(model, class_names=tuple(names))
  metadata = weights.describe(model, **others)
  weights.save_weights(path, params, state, metadata)
  card.write_beside(path, metadata=metadata)
