"""Linear probes: simple classifiers on a network's embeddings of a dataset."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import pathlib
from typing import Any, NamedTuple
import zipfile

import jax
import numpy as np
from scipy import stats
from sklearn import linear_model, model_selection, neighbors, preprocessing
import tensorflow_datasets as tfds
import threadpoolctl

from nfnets import module_names, paths, weights, zoo
from nfnets.data import builders
from nfnets.errors import UserError
from nfnets.inference import card, classes, networks
from nfnets.inference.evaluation import Evaluation, outputs, wilson

_FORMAT = 2  # Of the files in the cache; part of the key.
# Inverse strengths of the penalty that cross-validation chooses from. Features
# are standardized and many, so that the best are small.
_STRENGTHS = tuple(float(c) for c in np.logspace(-5, 1, 7))
# Used if a class has one example, so that nothing can be held out.
FIXED_STRENGTH = 0.01
_FOLDS = 5
_MAX_ITERATIONS = 1000


class Embeddings(NamedTuple):
  """The embeddings of the readable examples of a split.

  Attributes:
    features: float32 [N, C].
    labels: int32 [N].
    names: names of the K classes.
    indices: int64 [N], their numbers in the split.
  """

  features: np.ndarray
  labels: np.ndarray
  names: list[str]
  indices: np.ndarray | None = None

  def evaluation(self, predicted: np.ndarray, **others: Any) -> Evaluation:
    """Return an evaluation of predictions, int [N]."""
    number = len(self.names)
    return Evaluation(self.labels, predicted, number, self.names, **others)

  def select(self, rows: np.ndarray) -> 'Embeddings':
    """Return some of the examples."""
    arrays = self.features, self.labels, self.indices
    features, labels, indices = (x if x is None else x[rows] for x in arrays)
    return Embeddings(features, labels, self.names, indices)


class Head(NamedTuple):
  """A linear layer: logits = features @ w + b; float64 [C, K] and [K]."""

  w: np.ndarray
  b: np.ndarray

  def evaluate(self, test: Embeddings) -> Evaluation:
    """Return the predictions of this layer."""
    p = classes.softmax(test.features @ self.w + self.b)
    return test.evaluation(
      p.argmax(axis=1),
      indices=test.indices,
      confidence=p.max(axis=1),
      of_label=p[np.arange(len(p)), test.labels],
    )


def embed(
  network: networks.Network,
  builder: tfds.core.DatasetBuilder,
  split: str,
  batch_size: int = 32,
) -> Embeddings:
  """Return the embeddings of a split, from the user's cache if they are there.

  The key is the images, the weights (without the last layer), the size and the
  preprocessing. A damaged file is made again.

  Args:
    network: the network.
    builder: a dataset from `load_builder`.
    split: one of `builders.SPLITS`.
    batch_size: images per batch.

  Raises:
    UserError: if the split cannot be read, or the embeddings are not finite.
  """
  key = _key(network, builders.fingerprint(builder, split))
  path = paths.cache_folder('embeddings') / f'{key}.npz'
  found = _load(path, key)
  if found is None:
    found = _compute(network, builder, split, batch_size)
    with contextlib.suppress(OSError):  # Computed again the next time.
      paths.save_arrays(path, key=np.array(key), **found)
  return Embeddings(**found, names=builders.class_names(builder))


def _key(network: networks.Network, images: str) -> str:
  model, params, state = network.model, network.params, network.state
  entry = model.entry
  digest = hashlib.sha256()
  digest.update(
    repr(
      (
        *(_FORMAT, images, model.name, entry.test_size, entry.eval_preproc),
        *(np.asarray(x, np.float64).tolist() for x in (entry.mean, entry.std)),
        sorted((name, repr(value)) for name, value in model.overrides.items()),
        # In float32 all runtimes agree.
        *([network.precision] if network.precision != 'float32' else []),
      )
    ).encode()
  )
  body = {k: v for k, v in params.items() if not module_names.is_last_layer(k)}
  for path, leaf in jax.tree_util.tree_leaves_with_path((body, state)):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f'{path}{leaf.dtype}{leaf.shape}'.encode())
    digest.update(leaf.data)
  return digest.hexdigest()


def _load(path: pathlib.Path, key: str) -> dict[str, np.ndarray] | None:
  # Missing, or damaged: zip files have checksums.
  bad = OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile
  with contextlib.suppress(*bad), np.load(path, allow_pickle=False) as file:
    if file['key'] == key:
      return {name: file[name] for name in ('features', 'labels', 'indices')}
  return None


def _compute(network, builder, split, batch_size) -> dict[str, np.ndarray]:
  rows = outputs(network.embed, network, builder, split, batch_size, {})
  found = zip(*((x, y, i) for i, _, y, x in rows), strict=True)
  features, labels, indices = map(np.array, found)
  if not np.isfinite(features).all():
    raise UserError("The network's output is not finite.")
  labels = np.int32(labels)
  return {'features': features, 'labels': labels, 'indices': indices}


def measure(
  train: Embeddings,
  test: Embeddings,
  shots: Sequence[int],
  num_neighbors: int,
  draws: int = 5,
  seed: int = 0,
) -> Iterator[tuple[dict[str, Any], Head]]:
  """Fit classifiers to some of the training images and to all.

  Args:
    train: examples of every class, of which there are at least 2.
    test: the test set.
    shots: how many training images per class. Where no class has more than
      that, this is the same as all, and left out.
    num_neighbors: number of neighbours that vote.
    draws: number of random draws.
    seed: decides on the draws, at least 0.

  Yields:
    For each number of shots, and then for all: shots (None for all), draws, and
    the `estimate` of `logistic` regression and of the nearest `neighbors`; and
    the regression of the last draw.

  Raises:
    UserError: if a class has no example.
  """
  largest = np.bincount(train.labels).max()
  for count in (*(n for n in shots if n < largest), None):
    logistic, voted = [], []
    for i in range(1 if count is None else draws):
      part = train
      if count is not None:
        part = train.select(draw(train.labels, count, (seed, count, i)))
      head = fit(part)
      logistic.append(head.evaluate(test))
      voted.append(vote(part, test, num_neighbors))
    row = {'shots': count, 'draws': len(voted)}
    yield (
      {**row, 'logistic': estimate(logistic), 'neighbors': estimate(voted)},
      head,
    )


def draw(labels: np.ndarray, shots: int, seed: Sequence[int]) -> np.ndarray:
  """Draw examples of every class, without replacement.

  Args:
    labels: int [N].
    shots: number per class; all, if a class has fewer.
    seed: whole numbers that decide on them.

  Returns:
    Their numbers, int64, in ascending order.
  """
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(labels))
  chosen = [order[labels[order] == c][:shots] for c in np.unique(labels)]
  return np.sort(np.concatenate(chosen))


def cross_validate(train: Embeddings, seed: int = 0) -> Evaluation:
  """Return predictions for each example by a layer fitted without it.

  Examples that are the only ones of their class are left out: nothing else says
  what the class looks like.
  """
  rng, counts = np.random.default_rng(seed), np.bincount(train.labels)
  folds = np.zeros(len(train.labels), int)
  for label in range(len(counts)):
    # So that no fold has all examples of a class.
    folds[train.labels == label] = rng.permutation(counts[label]) % _FOLDS
  folds[counts[train.labels] == 1] = -1
  if counts.max() < 2:
    raise UserError('No class has two training images to compare.')
  tested, found = [], []
  for fold in range(folds.max() + 1):
    tested.append(np.flatnonzero(folds == fold))
    head = fit(train.select(np.flatnonzero(folds != fold)))
    found.append(head.evaluate(train.select(tested[-1])))
  names = 'predicted', 'indices', 'confidence', 'of_label'
  joined = {x: np.concatenate([getattr(y, x) for y in found]) for x in names}
  return train.select(np.concatenate(tested)).evaluation(**joined)


def fit(train: Embeddings) -> Head:
  """Fit multinomial logistic regression on standardized features.

  The strength of its L2 penalty is chosen by stratified cross-validation, by
  the log-loss, or is `FIXED_STRENGTH` where a class has a single example.

  Returns:
    The layer, with the standardization in it. For two classes, which have one
    weight per feature, the logits are half of it and its negative.

  Raises:
    UserError: if a class has no example.
  """
  counts = np.bincount(train.labels, minlength=len(train.names))
  if not counts.all():
    raise UserError(
      'There is no image to learn this class from: '
      f'{train.names[int(np.argmin(counts))]}.'
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
  if len(train.names) == 2:
    w, b = np.concatenate([-w, w], axis=1) / 2, np.concatenate([-b, b]) / 2
  w = w / scaler.scale_[:, None]
  return Head(w, b - scaler.mean_ @ w)


def vote(train: Embeddings, test: Embeddings, count: int) -> Evaluation:
  """Return the predictions of the nearest neighbours, by cosine.

  Args:
    train: whose labels vote.
    test: the test set.
    count: number of neighbours; all, if there are fewer.
  """
  voters = neighbors.KNeighborsClassifier(
    min(count, len(train.labels)), metric='cosine', weights='distance'
  )
  voters.fit(train.features, train.labels)
  with threadpoolctl.threadpool_limits(1):
    return test.evaluation(voters.predict(test.features))


def estimate(found: Sequence[Evaluation]) -> dict[str, float]:
  """Return {accuracy, low, high} of evaluations on the same test images.

  The accuracy is the mean. The interval has both that there are few test images
  (Wilson's, of the mean) and that there are few draws of training images
  (Student's t), added as independent errors are.

  Args:
    found: of several draws, or of one that has all images there are.
  """
  shares, total = [x.accuracy['share'] for x in found], len(found[0].labels)
  mean, draws, spread = float(np.mean(shares)), len(found), 0.0
  low, high = wilson(mean * total, total)
  if draws > 1:
    error = np.std(shares, ddof=1) / np.sqrt(draws)
    spread = stats.t.ppf(0.975, draws - 1) * error
  return {
    'accuracy': mean,
    'low': max(0.0, mean - float(np.hypot(mean - low, spread))),
    'high': min(1.0, mean + float(np.hypot(high - mean, spread))),
  }


def save(
  path: str,
  network: networks.Network,
  head: Head,
  names: Sequence[str],
  **others: Any,
) -> None:
  """Write a network with another last layer, and the names of its classes.

  If the file is called weights.safetensors, with its model card beside it.

  Args:
    path: ends in .npz or .safetensors.
    network: the network.
    head: the last layer.
    names: names of its classes.
    **others: more to note in the file; see `weights.metadata`.

  Raises:
    OSError: if it cannot be written.
  """
  layer = {'w': np.float32(head.w), 'b': np.float32(head.b)}
  params = network.params
  params = {**params, module_names.last_layer(params): layer}
  model = zoo.with_num_classes(network.model, len(names))
  model = dataclasses.replace(model, class_names=tuple(names))
  metadata = weights.describe(model, **others)
  weights.save_weights(path, params, network.state, metadata)
  card.write_beside(path, metadata=metadata)
