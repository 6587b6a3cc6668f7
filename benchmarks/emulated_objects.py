"""The objects of the emulated store, and its interface without sockets."""

import datetime
import itertools
import json
import pathlib
import re
import time
from typing import NamedTuple
from urllib import parse

BUCKET, FORBIDDEN = 'test-bucket', 'forbidden-bucket'
_PAGE = 1000  # Names in an answer to a request for a list.


class _Object(NamedTuple):
  """An object; a new one takes its place when it is written again."""

  content: bytes
  generation: int
  updated: str
  fields: dict  # What the client said of it, such as contentType.


class Answer(Exception):  # noqa: N818 (it ends the handling of a request)
  """An answer to a request."""

  def __init__(self, status: int, body: bytes | memoryview = b'', **headers):
    super().__init__()
    self.status, self.body, self.headers = status, body, headers


class Request(NamedTuple):
  """A request; `path` is as it was sent, without the query."""

  method: str
  path: str
  query: dict[str, str]
  headers: dict[str, str]
  body: bytes
  base: str  # Where it was sent to, such as https://storage.googleapis.com.


class Objects:
  """The buckets, and what the API does with them; knows nothing of sockets."""

  def __init__(self):
    self.buckets: dict[str, dict[str, _Object]] = {BUCKET: {}}
    self._uploads: dict[str, tuple[str, dict, bytearray]] = {}
    # Of generations and uploads; a later store has higher ones.
    self._numbers = itertools.count(time.time_ns() // 1000)

  def load(self, folder: pathlib.Path) -> None:
    """Puts the files of a folder into the bucket."""
    for path in sorted(folder.rglob('*')):
      if path.is_file():
        name = path.relative_to(folder).as_posix()
        self._put(BUCKET, name, path.read_bytes(), {}, {})

  def answer(self, asked: Request) -> tuple[str, Answer]:
    """Returns the kind of a request and its answer."""
    kind, handle, names = self._route(asked)
    try:
      if names and names[0] == FORBIDDEN:
        raise error(403, 'The caller does not have access to the bucket.')
      if names and names[0] not in self.buckets:
        raise error(404, 'The specified bucket does not exist.')
      handle(asked, *names)
    except Answer as answer:
      return kind, answer
    raise AssertionError(f'{handle} has not answered.')

  def _route(self, asked: Request) -> tuple[str, object, list[str]]:
    """Returns the kind of a request, its method and names."""
    path, method = asked.path, asked.method
    for pattern, methods in (
      (r'/storage/v1/b/([^/]+)', {'GET': ('bucket', self._bucket)}),
      # Whether the bucket has folders of its own; it has not.
      (
        r'/storage/v1/b/([^/]+)/storageLayout',
        {'GET': ('bucket', self._bucket)},
      ),
      (r'/storage/v1/b/([^/]+)/o/?', {'GET': ('list', self._list)}),
      (
        r'/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)',
        {'POST': ('copy', self._copy)},
      ),
      (
        r'(?:/download)?/storage/v1/b/([^/]+)/o/(.+)',
        {'GET': ('read', self._get), 'DELETE': ('delete', self._delete)},
      ),
      (
        r'/upload/storage/v1/b/([^/]+)/o',
        {'POST': ('write', self._insert), 'PUT': ('write', self._resume)},
      ),
      # Of the older interface, by which TensorFlow reads.
      (r'/([^/]+)/(.+)', {'GET': ('read', self._read)}),
    ):
      match = re.fullmatch(pattern, path)
      if match:
        kind, handle = methods.get(method, ('other', self._unknown))
        if handle == self._get and asked.query.get('alt') != 'media':
          kind = 'stat'
        return kind, handle, [parse.unquote(name) for name in match.groups()]
    return 'other', self._unknown, []

  def _unknown(self, asked: Request, *_: str) -> None:
    raise error(501, f'Not emulated: {asked.method} {asked.path}')

  def _bucket(self, _: Request, bucket: str) -> None:
    raise _json({'kind': 'storage#bucket', 'name': bucket, 'location': 'EU'})

  def _list(self, asked: Request, bucket: str) -> None:
    get = asked.query.get
    prefix, delimiter = get('prefix', ''), get('delimiter', '')
    first, stop = get('startOffset', ''), get('endOffset', '\U0010ffff')
    after, limit = get('pageToken', ''), int(get('maxResults', _PAGE))
    names, folders = [], []
    for name in sorted(self.buckets[bucket]):
      if not name.startswith(prefix) or not first <= name < stop:
        continue
      head, found, _ = name[len(prefix) :].partition(delimiter or '\0')
      folder = prefix + head + delimiter if found else ''
      if (folder or name) <= after or folder in folders[-1:]:
        continue
      (folders if folder else names).append(folder or name)
      if len(names) + len(folders) == min(limit, _PAGE):
        more = {'nextPageToken': folder or name}
        break
    else:
      more = {}
    items = [self._resource(bucket, name) for name in names]
    some = {'items': items, 'prefixes': folders}
    some = {key: value for key, value in some.items() if value}
    raise _json({'kind': 'storage#objects', **some, **more})

  def _get(self, asked: Request, bucket: str, name: str) -> None:
    if asked.query.get('alt') == 'media':
      self._read(asked, bucket, name)
    self._precondition(asked.query, bucket, name)
    self._find(bucket, name)
    raise _json(self._resource(bucket, name))

  def _read(self, asked: Request, bucket: str, name: str) -> None:
    self._precondition(asked.query, bucket, name)
    found = self._find(bucket, name)
    content, size = memoryview(found.content), len(found.content)
    headers = {
      'x-goog-generation': found.generation,
      'x-goog-metageneration': 1,
      'x-goog-stored-content-length': size,
      'content-type': 'application/octet-stream',
    }
    wanted = re.fullmatch(r'bytes=(\d*)-(\d*)', asked.headers.get('range', ''))
    if not wanted or wanted.groups() == ('', ''):
      raise Answer(200, content, **headers)
    first, last = wanted.groups()
    if first:
      start, stop = int(first), min(size, int(last or size) + 1)
    else:
      start, stop = max(0, size - int(last)), size
    if start >= size:
      raise error(416, f'{name} has {size} bytes.')
    headers['content-range'] = f'bytes {start}-{stop - 1}/{size}'
    raise Answer(206, content[start:stop], **headers)

  def _delete(self, asked: Request, bucket: str, name: str) -> None:
    self._find(bucket, name)
    self._precondition(asked.query, bucket, name)
    del self.buckets[bucket][name]
    raise Answer(204)

  def _copy(
    self, asked: Request, bucket: str, name: str, to_bucket: str, to: str
  ) -> None:
    self._precondition(asked.query, bucket, name, 'ifSource')
    found = self._find(bucket, name)
    if to_bucket not in self.buckets:
      raise error(404, 'The specified bucket does not exist.')
    fields = json.loads(asked.body or b'{}') or found.fields
    resource = self._put(to_bucket, to, found.content, fields, asked.query)
    if 'copyTo' in asked.path:
      raise _json(resource)
    size = str(len(found.content))
    raise _json(
      {
        'kind': 'storage#rewriteResponse',
        'done': True,
        'totalBytesRewritten': size,
        'objectSize': size,
        'resource': resource,
      }
    )

  def _insert(self, asked: Request, bucket: str) -> None:
    how, headers = asked.query.get('uploadType'), asked.headers
    kind = headers.get('content-type', '')
    if how == 'media':
      name, fields, content = asked.query['name'], {'contentType': kind}, None
    elif how == 'multipart':
      fields, content = _two_parts(kind, asked.body)
      name = asked.query.get('name') or fields['name']
    elif how == 'resumable':
      fields = json.loads(asked.body or b'{}')
      name = asked.query.get('name') or fields['name']
      self._precondition(asked.query, bucket, name)
      upload = str(next(self._numbers))
      query = asked.query | {'name': name, 'upload_id': upload}
      self._uploads[upload] = bucket, fields, bytearray()
      where = f'{asked.base}{asked.path}?{parse.urlencode(query)}'
      raise Answer(200, location=where)
    else:
      raise error(400, f'Unknown uploadType {how!r}.')
    content = asked.body if content is None else content
    raise _json(self._put(bucket, name, content, fields, asked.query))

  def _resume(self, asked: Request, _: str) -> None:
    upload = asked.query.get('upload_id')
    if upload not in self._uploads:
      raise error(404, f'There is no upload {upload}.')
    bucket, fields, content = self._uploads[upload]
    pattern = r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)'
    match = re.fullmatch(pattern, asked.headers.get('content-range', ''))
    first, total = match.groups() if match else (0, len(asked.body))
    if first is not None:
      # What was sent before, but whose answer was lost, is sent again.
      content[int(first) :] = asked.body
    if total == '*' or len(content) < int(total):
      at = {'range': f'bytes=0-{len(content) - 1}'} if content else {}
      raise Answer(308, **at)
    name = asked.query['name']
    done = self._put(bucket, name, bytes(content), fields, asked.query)
    del self._uploads[upload]
    raise _json(done)

  def _find(self, bucket: str, name: str) -> _Object:
    found = self.buckets[bucket].get(name)
    if found is None:
      raise error(404, f'No such object: {bucket}/{name}')
    return found

  def _put(
    self, bucket: str, name: str, content: bytes, fields: dict, query: dict
  ) -> dict:
    """Writes an object if the preconditions hold; returns its resource."""
    self._precondition(query, bucket, name)
    now = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
    made = _Object(content, next(self._numbers), now, fields)
    self.buckets[bucket][name] = made
    return self._resource(bucket, name)

  def _precondition(
    self, query: dict, bucket: str, name: str, prefix: str = 'if'
  ) -> None:
    """Ends the request unless the object is of the generation asked for."""
    found = self.buckets[bucket].get(name)
    generation = str(found.generation if found else 0)
    if query.get(f'{prefix}GenerationMatch', generation) != generation:
      raise error(412, f'{name} is of generation {generation}.')
    if query.get(f'{prefix}GenerationNotMatch') == generation:
      raise Answer(304)

  def _resource(self, bucket: str, name: str) -> dict:
    found = self.buckets[bucket][name]
    return {
      'contentType': 'application/octet-stream',
      **found.fields,
      'kind': 'storage#object',
      'id': f'{bucket}/{name}/{found.generation}',
      'name': name,
      'bucket': bucket,
      'generation': str(found.generation),
      'metageneration': '1',
      'etag': str(found.generation),
      'size': str(len(found.content)),
      'storageClass': 'STANDARD',
      'timeCreated': found.updated,
      'updated': found.updated,
    }


def _json(content: dict, status: int = 200) -> Answer:
  kind = {'content-type': 'application/json; charset=UTF-8'}
  return Answer(status, json.dumps(content).encode(), **kind)


def error(status: int, message: str) -> Answer:
  return _json({'error': {'code': status, 'message': message}}, status)


def _two_parts(content_type: str, body: bytes) -> tuple[dict, bytes]:
  """Returns the fields and the content of a multipart upload."""
  boundary = re.search(r'boundary="?([^";]+)', content_type).group(1).encode()
  # Before the first boundary there is nothing, after the last '--'.
  parts = body.split(b'--' + boundary)[1:3]
  fields, content = (part.partition(b'\r\n\r\n')[2][:-2] for part in parts)
  return json.loads(fields), content
