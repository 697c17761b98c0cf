"""A server on loopback that speaks the hub's file protocol, as `huggingface_hub` asks for files."""

import contextlib
import hashlib
import http.server
import re
import threading

_ADDRESS = re.compile(r'/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)')


def _find(files, branches, path):
  """(headers, content); the content is None where it is missing, and a header says why."""
  match = _ADDRESS.fullmatch(path)
  if not match or match[1] not in files:
    return {'X-Error-Code': 'RepoNotFound'}, None
  commits, revision = files[match[1]], match[2].replace('%2F', '/')
  commit = branches[match[1]].get(revision, revision)
  if commit not in commits:
    return {'X-Error-Code': 'RevisionNotFound'}, None
  content = commits[commit].get(match[3])
  if content is None:
    return {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': commit}, None
  return {'X-Repo-Commit': commit, 'ETag': f'"{hashlib.sha256(content).hexdigest()}"'}, content


@contextlib.contextmanager
def serving(files, branches):
  """Serves a hub in the block: its address, and a list that gets (method, path) of each request.

  Args:
    files: files of each commit, bytes by name, by commit, by repository.
    branches: commits by branch or tag, by repository.
  """
  requests = []

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
      requests.append((self.command, self.path))
      headers, content = _find(files, branches, self.path)
      self.send_response(404 if content is None else 200)
      for name, value in {**headers, 'Content-Length': len(content or b'')}.items():
        self.send_header(name, str(value))
      self.end_headers()
      if self.command == 'GET' and content:
        self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', requests
    server.shutdown()
