"""A server on loopback that speaks the hub's file protocol, as `huggingface_hub` asks for files."""

import contextlib
import dataclasses
import hashlib
import http.server
import re
import threading

_ADDRESS = re.compile(r'/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)')


@dataclasses.dataclass
class Hub:
  """Repositories, and what was asked of them.

  Attributes:
    files: files of each commit, bytes by name, by commit, by repository.
    branches: commits by branch or tag, by repository.
    requests: (method, path) of every request.
    address: address of the running server.
  """

  files: dict
  branches: dict
  requests: list = dataclasses.field(default_factory=list)
  address: str = ''

  def find(self, path):
    """(headers, content); the content is None where it is missing, and a header says why."""
    match = _ADDRESS.fullmatch(path)
    if not match or match.group(1) not in self.files:
      return {'X-Error-Code': 'RepoNotFound'}, None
    repository, revision, name = match.groups()
    commit = self.branches[repository].get(revision.replace('%2F', '/'), revision)
    if commit not in self.files[repository]:
      return {'X-Error-Code': 'RevisionNotFound'}, None
    if name not in self.files[repository][commit]:
      return {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': commit}, None
    content = self.files[repository][commit][name]
    etag = hashlib.sha256(content).hexdigest()
    return {'X-Repo-Commit': commit, 'ETag': f'"{etag}"'}, content


@contextlib.contextmanager
def serving(hub):
  """Serves a hub in the block, whose address it then has."""

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
      self.answer(with_content=True)

    def do_HEAD(self):
      self.answer(with_content=False)

    def answer(self, with_content):
      hub.requests.append((self.command, self.path))
      headers, content = hub.find(self.path)
      self.send_response(404 if content is None else 200)
      length = len(content or b'')
      for name, value in {**headers, 'Content-Length': length}.items():
        self.send_header(name, str(value))
      self.end_headers()
      if with_content and content:
        self.wfile.write(content)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f'http://127.0.0.1:{server.server_port}'
    yield hub
    server.shutdown()
