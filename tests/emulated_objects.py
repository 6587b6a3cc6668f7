"""The objects of the emulated store, and its interface without sockets."""

import datetime
import itertools
import json
import pathlib
import re
import time
from typing import Any, NamedTuple
from urllib import parse

BUCKET, FORBIDDEN = 'test-bucket', 'forbidden-bucket'
_PAGE = 1000  # Names in one answer to a request for a list.


class _Object(NamedTuple):
  """An object; writing it again makes another one with a new generation."""

  content: bytes
  generation: int
  updated: str
  fields: dict  # What the client sent with it, such as contentType.


class Answer(Exception):  # noqa: N818 (it ends the handling of a request)
  """An answer to a request."""

  def __init__(self, status: int, body: bytes | memoryview = b'', **headers):
    super().__init__()
    self.status, self.body, self.headers = status, body, headers


def json_answer(content: dict, status: int = 200) -> Answer:
  kind = {'content-type': 'application/json; charset=UTF-8'}
  return Answer(status, json.dumps(content).encode(), **kind)


def error(status: int, message: str) -> Answer:
  return json_answer({'error': {'code': status, 'message': message}}, status)


class Request(NamedTuple):
  path: str  # As it was sent, without the query.
  query: dict[str, str]
  headers: Any
  body: bytes
  base: str  # Such as https://storage.googleapis.com.


class Objects:
  """The buckets and the API's operations on them, without sockets."""

  def __init__(self, folder: pathlib.Path | None):
    self._buckets: dict[str, dict[str, _Object]] = {BUCKET: {}}
    self._uploads: dict[str, tuple[dict, bytearray]] = {}
    # A later store has higher generations.
    self._numbers = itertools.count(time.time_ns() // 1000)
    api, name = '/storage/v1/b/([^/]+)', '/o/(.+)'
    self._routes = [
      (f'GET {api}(?:/storageLayout)?', 'bucket', self._bucket),
      (f'GET {api}/o/?', 'list', self._list),
      (f'POST {api}/o/([^/]+)/rewriteTo/b/([^/]+){name}', 'copy', self._copy),
      (f'GET (?:/download)?{api}{name}', 'read', self._get),
      (f'DELETE {api}{name}', 'delete', self._delete),
      (f'POST /upload{api}/o', 'write', self._insert),
      (f'PUT /upload{api}/o', 'write', self._resume),
      # The older interface, by which TensorFlow reads.
      ('GET /([^/]+)/(.+)', 'read', self._read),
    ]
    for path in sorted(folder.rglob('*')) if folder else ():
      if path.is_file():
        name = path.relative_to(folder).as_posix()
        self._put(BUCKET, name, path.read_bytes(), {}, {})

  def answer(self, method: str, asked: Request) -> tuple[str, Answer]:
    """Returns the kind of a request and its answer."""
    line = f'{method} {asked.path}'
    matches = ((re.fullmatch(route[0], line), route) for route in self._routes)
    found = next((pair for pair in matches if pair[0]), None)
    if found is None:
      return 'other', error(501, f'Not emulated: {line}')
    match, (_, kind, handle) = found
    names = [parse.unquote(name) for name in match.groups()]
    if handle == self._get and asked.query.get('alt') != 'media':
      kind = 'stat'
    try:
      if names[0] == FORBIDDEN:
        raise error(403, 'The caller does not have access to the bucket.')
      if {names[0], *names[2:3]} - self._buckets.keys():
        raise error(404, 'The specified bucket does not exist.')
      return kind, handle(asked, *names)
    except Answer as answer:
      return kind, answer

  def _bucket(self, _: Request, bucket: str) -> Answer:
    return json_answer(
      {'kind': 'storage#bucket', 'name': bucket, 'location': 'EU'}
    )

  def _list(self, asked: Request, bucket: str) -> Answer:
    get = asked.query.get
    prefix, delimiter = get('prefix', ''), get('delimiter', '')
    first, stop = get('startOffset', ''), get('endOffset', '\U0010ffff')
    after, limit = get('pageToken', ''), int(get('maxResults', _PAGE))
    found: dict[str, list] = {'items': [], 'prefixes': []}
    for name in sorted(self._buckets[bucket]):
      if not name.startswith(prefix) or not first <= name < stop:
        continue
      head, has_more, _ = name[len(prefix) :].partition(delimiter or '\0')
      folder = prefix + head + delimiter if has_more else ''
      if (folder or name) <= after or folder in found['prefixes'][-1:]:
        continue
      if folder:
        found['prefixes'].append(folder)
      else:
        found['items'].append(self._resource(bucket, name))
      if sum(map(len, found.values())) == min(limit, _PAGE):
        return json_answer({**found, 'nextPageToken': folder or name})
    return json_answer({key: value for key, value in found.items() if value})

  def _get(self, asked: Request, bucket: str, name: str) -> Answer:
    if asked.query.get('alt') == 'media':
      return self._read(asked, bucket, name)
    self._find(asked, bucket, name)
    return json_answer(self._resource(bucket, name))

  def _read(self, asked: Request, bucket: str, name: str) -> Answer:
    found = self._find(asked, bucket, name)
    content, size = memoryview(found.content), len(found.content)
    headers = {
      'x-goog-generation': found.generation,
      'x-goog-metageneration': 1,
      'x-goog-stored-content-length': size,
      'content-type': 'application/octet-stream',
    }
    wanted = asked.headers.get('range', '')
    wanted = re.fullmatch(r'bytes=(\d*)-(\d*)', wanted)
    if not wanted or wanted.groups() == ('', ''):
      return Answer(200, content, **headers)
    first, last = wanted.groups()
    start, stop = max(0, size - int(last or 0)), size
    if first:
      start, stop = int(first), min(size, int(last or size) + 1)
    if start >= size:
      raise error(416, f'{name} has {size} bytes.')
    headers['content-range'] = f'bytes {start}-{stop - 1}/{size}'
    return Answer(206, content[start:stop], **headers)

  def _delete(self, asked: Request, bucket: str, name: str) -> Answer:
    self._find(asked, bucket, name)
    del self._buckets[bucket][name]
    return Answer(204)

  def _copy(
    self, asked: Request, bucket: str, name: str, to_bucket: str, to: str
  ) -> Answer:
    found = self._find(asked._replace(query={}), bucket, name)
    fields = json.loads(asked.body or b'{}') or found.fields
    resource = self._put(to_bucket, to, found.content, fields, asked.query)
    size = str(len(found.content))
    sizes = {'totalBytesRewritten': size, 'objectSize': size}
    return json_answer({'done': True, 'resource': resource, **sizes})

  def _insert(self, asked: Request, bucket: str) -> Answer:
    how, content = asked.query.get('uploadType'), asked.body
    kind = asked.headers.get('content-type', '')
    if how == 'media':
      fields = {'contentType': kind}
    elif how == 'multipart':
      fields, content = _two_parts(kind, content)
    elif how == 'resumable':
      fields = json.loads(content or b'{}')
    else:
      raise error(400, f'Unknown uploadType {how!r}.')
    name = asked.query.get('name') or fields['name']
    if how != 'resumable':
      return json_answer(self._put(bucket, name, content, fields, asked.query))
    self._check(asked.query, bucket, name)
    upload = str(next(self._numbers))
    self._uploads[upload] = fields, bytearray()
    query = parse.urlencode(asked.query | {'name': name, 'upload_id': upload})
    return Answer(200, location=f'{asked.base}{asked.path}?{query}')

  def _resume(self, asked: Request, bucket: str) -> Answer:
    upload = asked.query.get('upload_id')
    if upload not in self._uploads:
      raise error(404, f'There is no upload {upload}.')
    fields, content = self._uploads[upload]
    pattern = r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)'
    match = re.fullmatch(pattern, asked.headers.get('content-range', ''))
    first, total = match.groups() if match else (0, len(asked.body))
    if first is not None:
      # A part whose answer was lost is sent again.
      content[int(first) :] = asked.body
    if total == '*' or len(content) < int(total):
      at = {'range': f'bytes=0-{len(content) - 1}'} if content else {}
      return Answer(308, **at)
    del self._uploads[upload]
    name = asked.query['name']
    return json_answer(
      self._put(bucket, name, bytes(content), fields, asked.query)
    )

  def _find(self, asked: Request, bucket: str, name: str) -> _Object:
    """Returns an object if it exists and the preconditions hold."""
    self._check(asked.query, bucket, name)
    if found := self._buckets[bucket].get(name):
      return found
    raise error(404, f'No such object: {bucket}/{name}')

  def _put(
    self, bucket: str, name: str, content: bytes, fields: dict, query: dict
  ) -> dict:
    """Writes an object if the preconditions hold; returns its resource."""
    self._check(query, bucket, name)
    now = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
    made = _Object(content, next(self._numbers), now, fields)
    self._buckets[bucket][name] = made
    return self._resource(bucket, name)

  def _check(self, query: dict, bucket: str, name: str) -> None:
    """Ends the request unless its preconditions hold."""
    found = self._buckets[bucket].get(name)
    generation = str(found.generation if found else 0)
    if query.get('ifGenerationMatch', generation) != generation:
      raise error(412, f'{name} is of generation {generation}.')
    if query.get('ifGenerationNotMatch') == generation:
      raise Answer(304)

  def _resource(self, bucket: str, name: str) -> dict:
    found = self._buckets[bucket][name]
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


def _two_parts(content_type: str, body: bytes) -> tuple[dict, bytes]:
  """Returns the fields and the content of a multipart upload."""
  boundary = re.search(r'boundary="?([^";]+)', content_type).group(1).encode()
  # Nothing is before the first boundary, and '--' after the last one.
  parts = body.split(b'--' + boundary)[1:3]
  fields, content = (part.partition(b'\r\n\r\n')[2][:-2] for part in parts)
  return json.loads(fields), content
