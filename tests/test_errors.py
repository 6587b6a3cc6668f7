"""The one error that a user can act on."""

import errno
import pickle

import pytest

from nfnets import errors


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (FileNotFoundError(errno.ENOENT, 'No such file', 'a'), 'lr: No such file'),
    (ValueError('it is negative.'), 'lr: it is negative.'),
    (ValueError('No lr is negative.'), 'No lr is negative.'),
  ],
)
def test_errors_say_where_once(error, message):
  with pytest.raises(errors.UserError) as caught, errors.prefix('lr', 2):
    raise error
  assert (str(caught.value), caught.value.status) == (message, 2)
  assert caught.value.__cause__ is error


def test_names_are_said_once():
  with pytest.raises(errors.UserError, match='^weights: a: it is damaged$'):
    with errors.prefix('weights: a'):
      raise ValueError('a: it is damaged')


def test_whole_messages_and_bugs_pass():
  for error in (errors.ImageError('is empty'), TypeError('a bug')):
    with pytest.raises(type(error)) as caught, errors.prefix('lr', 2):
      raise error
    assert caught.value is error


def test_the_status_survives_another_process():
  copy = pickle.loads(pickle.dumps(errors.UserError('wrong', 2)))
  assert (str(copy), copy.status) == ('wrong', 2)
