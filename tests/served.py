"""A server on loopback for tests of downloads."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def serving(answer):
  """Serves in the block: its address, and a list that gets (method, path) of each request.

  Args:
    answer: from a path to (headers, content); the content is None where it is missing.
  """
  requests = []

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
      requests.append((self.command, self.path))
      headers, content = answer(self.path)
      self.send_response(404 if content is None else 200)
      for name, value in {'Content-Length': len(content or b''), **headers}.items():
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
