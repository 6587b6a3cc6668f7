"""What the server lets through, asked as a server asks an application."""

import asyncio
import json
import os

import pytest

from nfnets.inference.demo import guard

HOST = (b'host', b'127.0.0.1:7860')


@pytest.fixture
def ask(tmp_path):
  """Returns (method, path, body, headers) -> (status, headers, what came in).

  The application behind the guard reads all of a request and answers 200.
  """
  files = tmp_path / 'files'
  files.mkdir()
  (files / 'a.png').write_bytes(b'0' * 50)
  (tmp_path / 'secret').write_text('secret')
  os.symlink(tmp_path / 'secret', files / 'link')

  async def app(scope, receive, send):
    body, more = b'', scope['method'] == 'POST'
    while more:
      part = await receive()
      body += part['body']
      more = part.get('more_body', False)
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': body})

  guarded = guard.Guard(
    app,
    folder=str(files),
    hosts=('127.0.0.1', 'localhost'),
    max_upload=1000,
    max_stored=500,
    per_minute=3,
  )

  def ask(path, body=None, headers=(), method=None, kind='http'):
    path = path.replace('FOLDER', str(files))
    sent = []
    headers = [HOST, *headers] if not dict(headers).get(b'host') else headers
    parts = []
    if body is not None:
      if b'content-length' not in dict(headers):
        headers = [*headers, (b'content-length', str(len(body)).encode())]
      half = len(body) // 2
      parts = [
        {'type': 'http.request', 'body': body[:half], 'more_body': True},
        {'type': 'http.request', 'body': body[half:]},
      ]

    async def receive():
      return parts.pop(0)

    async def send(message):
      sent.append(message)

    scope = {
      'type': kind,
      'method': method or ('GET' if body is None else 'POST'),
      'path': path,
      'headers': headers,
    }
    asyncio.run(guarded(scope, receive, send))
    return sent[0]['status'], dict(sent[0]['headers']), sent[1]['body']

  return ask


@pytest.mark.parametrize(
  'path, status',
  [
    *(('/', 200), ('/config', 200), ('/assets/a.js', 200)),
    *(('/gradio_api/file=FOLDER/a.png', 200), ('/theme.css', 200)),
    *(('/gradio_api/file=/etc/passwd', 403), ('/docs', 404)),
    ('/gradio_api/file=FOLDER/../secret', 403),
    ('/gradio_api/file=FOLDER/link', 403),
    ('/gradio_api/file=http://example.com/a.png', 403),
    *(('/gradio_api/file=FOLDER', 403), ('/monitoring/summary', 404)),
    ('/gradio_api/proxy=https://example.com', 404),
    *(('/gradio_api/run/predict', 404), ('/gradio_api/call/a', 404)),
    *(('/gradio_api/component_server', 404), ('/gradio_api/runs', 404)),
  ],
)
def test_only_what_the_page_needs_is_served(ask, path, status):
  assert ask(path)[0] == status


def test_every_answer_forbids_what_is_from_elsewhere(ask):
  for path in ('/', '/docs'):
    policy = ask(path)[1][b'content-security-policy'].decode()
    assert policy.startswith("default-src 'self' ")
    assert 'http' not in policy and '*' not in policy


@pytest.mark.parametrize(
  'headers, status',
  [
    ([(b'host', b'localhost:7860')], 200),
    ([(b'host', b'example.com')], 403),
    ([(b'host', b'127.0.0.1.example.com:7860')], 403),
    ([HOST, (b'origin', b'http://127.0.0.1:7860')], 200),
    ([HOST, (b'origin', b'http://example.com')], 403),
    ([HOST, (b'origin', b'null')], 403),
  ],
)
def test_pages_of_other_servers_get_nothing(ask, headers, status):
  assert ask('/config', headers=headers)[0] == status


def test_methods_protocols_and_lengths_are_bounded(ask):
  upload = '/gradio_api/upload'
  assert ask('/', method='DELETE')[0] == 405
  assert ask('/', kind='websocket')[0] == 403
  assert ask(upload, b'0' * 1001)[0] == 413
  unknown = [(b'content-length', b'many')]
  assert ask(upload, b'0', headers=unknown)[0] == 411
  # 50 bytes and the name in a link are there.
  assert ask(upload, b'0' * 460)[0] == 507
  assert ask(upload, b'0' * 200)[0] == 200


def test_message_longer_than_it_says_is_refused(ask, monkeypatch):
  monkeypatch.setattr(guard, '_MAX_MESSAGE', 20)
  short = [(b'content-length', b'4')]
  assert ask('/gradio_api/reset', b' ' * 30, headers=short)[0] == 413


@pytest.mark.parametrize(
  'message, status',
  [
    ({'data': [{'path': '/tmp/a.png', 'url': 'http://127.0.0.1/a'}]}, 200),
    ({'data': ['https://example.com/ is only text', 3, None]}, 200),
    ({'data': [{'path': 'https://example.com/a.png'}]}, 403),
    ({'data': [{'value': [{'path': 'file:///etc/passwd'}]}]}, 403),
  ],
)
def test_no_message_has_gradio_fetch_a_file(ask, message, status):
  body = json.dumps(message).encode()
  answered, _, passed_on = ask('/gradio_api/queue/join', body)
  assert answered == status
  if status == 200:
    assert passed_on == body


@pytest.mark.parametrize('body', [b'{', b'\xff\xfe', b'[' * 100_000])
def test_what_is_no_json_is_refused(ask, body):
  assert ask('/gradio_api/reset', body)[0] == 400


def test_requests_of_a_minute_are_counted(ask):
  statuses = [ask('/gradio_api/queue/join', b'{}')[0] for _ in range(4)]
  assert statuses == [200, 200, 200, 429]
  assert ask('/gradio_api/upload', b'0')[0] == 429
  assert ask('/')[0] == 200


def test_rate_forgets_after_a_minute():
  now = [0.0]
  rate = guard.Rate(2, clock=lambda: now[0])
  assert [rate.take() for _ in range(3)] == [True, True, False]
  now[0] = 59.9
  assert not rate.take()
  now[0] = 60.0
  assert [rate.take() for _ in range(3)] == [True, True, False]
