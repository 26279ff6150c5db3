"""A web program for a container, as the text of a cell: pages, streams, uploads, web sockets; keeps what it is sent."""

from __future__ import annotations

# Page and script use no name of the server's: what they ask for is below their own address.
PAGE = """<!doctype html><title>board</title><p id=own>?</p><p id=socket>?</p><p id=terminals>?</p><p id=cookie>?</p>
<script src="script.js"></script>
<script type=module src="module.js"></script>
"""
SCRIPT = """
const say = (id, text) => { document.getElementById(id).textContent = text };
fetch("echo?a=1", {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"})
  .then(answer => answer.text()).then(text => say("own", text)).catch(error => say("own", "failed " + error));
const socket = new WebSocket(new URL("socket", location.href.replace(/^http/, "ws")));
socket.onopen = () => socket.send("hello");
socket.onmessage = event => say("socket", event.data);
socket.onerror = () => say("socket", "failed");
const root = BASE;
fetch(root + "api/terminals", {method: "POST", credentials: "include"})
  .then(answer => say("terminals", "answered " + answer.status)).catch(() => say("terminals", "refused"));
try { say("cookie", "cookies " + document.cookie) } catch (error) { say("cookie", error.name) }
"""

CELL = """
import asyncio, threading, tornado.httpserver, tornado.web, tornado.websocket
PAGE, SCRIPT = %(page)r, %(script)r
seen = []
class Any(tornado.web.RequestHandler):
    def prepare(self):
        seen.append((self.request.method, self.request.uri, dict(self.request.headers)))
        for name in ("_xsrf=evil", "username-localhost=evil", "mine=1"):
            self.add_header("Set-Cookie", name)
        self.set_header("Service-Worker-Allowed", "/")
        self.set_header("Access-Control-Allow-Origin", "*")
    def check_xsrf_cookie(self):
        pass
class Page(Any):
    def get(self):
        self.set_header("Content-Encoding", "identity")  # As TensorBoard says.
        self.write(PAGE)
class Script(Any):
    def get(self):
        self.set_header("Content-Type", "text/javascript")
        self.write(SCRIPT)
class Echo(Any):
    def get(self):
        self.write("asked " + self.request.uri)
    def post(self):
        self.write("posted " + self.request.body.decode())
class Upload(Any):
    def post(self):
        self.write(str(len(self.request.body)))
class Download(Any):
    def get(self):
        self.write(b"x" * 5_000_000)
class Events(Any):
    async def get(self):
        self.set_header("Content-Type", "text/event-stream")
        for number in range(3):
            self.write("data: %%d\\n\\n" %% number)
            await self.flush()
            await asyncio.sleep(0.4)
class Unasked(Any):
    def get(self):
        said = b"<script>document.title = parent.location</script>"
        head = b"HTTP/1.1 101 Switching Protocols\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\nContent-Type: text/html\\r\\n"
        stream = self.detach()
        stream.write(head + b"Content-Length: %%d\\r\\n\\r\\n" %% len(said) + said)
class Away(Any):
    def get(self):
        self.redirect("/echo?from=away")
class Socket(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        self.write_message("echo " + message)
def serve():
    asyncio.set_event_loop(asyncio.new_event_loop())
    routes = [("/", Page), ("/script.js", Script), ("/module.js", Script), ("/echo", Echo), ("/upload", Upload),
        ("/download", Download), ("/events", Events), ("/away", Away), ("/unasked", Unasked), ("/socket", Socket)]
    server = tornado.httpserver.HTTPServer(tornado.web.Application(routes), max_buffer_size=100_000_000)
    server.listen(%(port)d, "127.0.0.1")
    print("serves", flush=True)
    asyncio.get_event_loop().run_forever()
threading.Thread(target=serve, daemon=True).start()
import time; time.sleep(1)
"""


def cell(port: int, *, base: str) -> str:
    """The cell that serves at a port; its page tries to reach Jupyter at `base`."""
    return CELL % {"page": PAGE, "script": SCRIPT.replace("BASE", repr(base)), "port": port}
