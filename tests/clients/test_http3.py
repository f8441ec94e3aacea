"""HTTP/3 by `aioquic`, an implementation that shares nothing with ours, against the TLS listener named
by SLUICEGATE_TLS_URL, whose certificate is the file SLUICEGATE_CERT. SLUICEGATE_PROGRAM is what may be
started to be stopped."""

import asyncio
import contextlib
import json
import os
import re
import signal
import tempfile
import unittest
import urllib.request
from urllib.parse import urlsplit

TLS_URL = urlsplit(os.environ.get("SLUICEGATE_TLS_URL", ""))
OPS_URL = os.environ.get("SLUICEGATE_OPS_URL", "").rstrip("/")
CERT = os.environ.get("SLUICEGATE_CERT", "")
PROGRAM = os.environ.get("SLUICEGATE_PROGRAM", "")
CI = bool(os.environ.get("CI"))

# The longest that any one thing may take; nothing waits for it unless it is broken.
PATIENCE = 20

H3_NO_ERROR = 0x100
H3_REQUEST_CANCELLED = 0x10C

try:
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamReset
except ModuleNotFoundError:
    connect, QuicConnectionProtocol = None, object


def setUpModule():
    """In CI nothing may be missing; by hand a missing piece is a skip that says so."""
    missing = None
    if not (TLS_URL.port and CERT and OPS_URL and PROGRAM):
        missing = "SLUICEGATE_TLS_URL, _CERT, _OPS_URL and _PROGRAM name no gateway"
    elif connect is None:
        missing = "the aioquic package is not installed"
    if missing and CI:
        raise RuntimeError(f"In CI nothing may be missing: {missing}.")
    if missing:
        raise unittest.SkipTest(missing)


class Http3(QuicConnectionProtocol):
    """One connection; what comes for each request waits in a queue of its own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.http = H3Connection(self._quic)
        self.queues = {}
        self.handshake = None
        self.terminated = None

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.handshake = event
        elif isinstance(event, ConnectionTerminated):
            self.terminated = event
            for queue in self.queues.values():
                queue.put_nowait(event)
        elif isinstance(event, StreamReset) and event.stream_id in self.queues:
            self.queues[event.stream_id].put_nowait(event)
        for event in self.http.handle_event(event):
            if event.stream_id in self.queues:
                self.queues[event.stream_id].put_nowait(event)

    def ask(self, method, path, body=b"", headers=(), end=True):
        """Sends a request, whole unless `end` is false."""
        stream = self._quic.get_next_available_stream_id()
        self.queues[stream] = asyncio.Queue()
        head = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path.encode()),
            *headers,
        ]
        self.http.send_headers(stream, head, end_stream=end and not body)
        if body:
            self.http.send_data(stream, body, end_stream=end)
        self.transmit()
        return Exchange(self, stream)

    def chat(self, model, headers=(), message="Hello!", stream=True):
        request = {"model": model, "stream": stream, "messages": [{"role": "user", "content": message}]}
        body = json.dumps(request).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
        return self.ask("POST", "/v1/chat/completions", body, head)


class Exchange:
    """One request and what has come of its answer."""

    def __init__(self, http, stream):
        self.http, self.stream = http, stream
        self.status, self.headers, self.body, self.trailers = None, {}, b"", None
        self.ended = False

    async def step(self):
        """Takes the next thing that came; false at the end."""
        if self.ended:
            return False
        event = await asyncio.wait_for(self.http.queues[self.stream].get(), PATIENCE)
        if isinstance(event, HeadersReceived) and self.status is None:
            self.headers = dict(event.headers)
            self.status = int(self.headers[b":status"])
        elif isinstance(event, HeadersReceived):
            self.trailers = dict(event.headers)
        elif isinstance(event, DataReceived):
            self.body += event.data
        else:
            raise ConnectionError(f"it broke off: {event}")
        self.ended = event.stream_ended
        return True

    async def whole(self):
        while await self.step():
            pass
        return self

    async def until(self, count):
        """Reads until so many events have come, and says how many there are."""
        while self.body.count(b"\n\n") < count and await self.step():
            pass
        return self.body.count(b"\n\n")

    def cancel(self):
        """Wants no more of the answer."""
        self.http._quic.stop_stream(self.stream, H3_REQUEST_CANCELLED)
        self.http.transmit()

    def reset(self):
        """Gives up in the middle of the request, and wants no answer."""
        self.http._quic.reset_stream(self.stream, H3_REQUEST_CANCELLED)
        self.cancel()

    def text(self):
        """The text of a stream of chat chunks."""
        data = re.findall(rb"^data: (\{.*)$", self.body, re.MULTILINE)
        choices = [choice for chunk in data for choice in json.loads(chunk)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


def ended(outcome):
    """How many requests have ended in this way."""
    with urllib.request.urlopen(f"{OPS_URL}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith("sluicegate_requests_total{") and f'outcome="{outcome}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in wanted)


@contextlib.asynccontextmanager
async def connected(address=TLS_URL, cert=CERT, session_ticket=None, **options):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="localhost")
    configuration.session_ticket = session_ticket
    configuration.load_verify_locations(cafile=cert)
    async with connect(
        address.hostname, address.port, configuration=configuration, create_protocol=Http3, **options
    ) as http:
        yield http


@contextlib.asynccontextmanager
async def own_gateway():
    """A gateway to be stopped; its process, its TLS address and its certificate."""
    with tempfile.TemporaryDirectory() as state:
        settings = [
            'server.listen="127.0.0.1:0"', 'ops.listen="127.0.0.1:0"', 'tls.listen="127.0.0.1:0"',
            f'server.state_dir="{state}"', 'drain.lag="0s"', 'models=[{name="scripted",engine="scripted"}]',
        ]
        arguments = [word for setting in settings for word in ("--set", setting)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "serve", *arguments, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            address = None
            while address is None:
                line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
                address = re.search(r"TLS (https://\S+)", line.decode())
                if not line:
                    raise RuntimeError("the gateway does not start")
            yield process, urlsplit(address[1]), os.path.join(state, "dev-cert.pem")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


class Http3ByAioquic(unittest.IsolatedAsyncioTestCase):
    async def left(self, stream):
        """Leaves a stream that has begun; the next test's counts are its own."""
        before = await asyncio.to_thread(ended, "client_gone")
        stream.cancel()
        await self.gone(before)

    async def gone(self, before):
        """Waits until one more client is counted as gone."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while (now := await asyncio.to_thread(ended, "client_gone")) <= before:
            self.assertLess(asyncio.get_running_loop().time(), deadline, "the cancel is never seen")
            await asyncio.sleep(0.005)
        self.assertEqual(now, before + 1, "counted once")

    async def test_an_answer_streams_token_by_token(self):
        async with connected() as http:
            # The second token comes an hour after the first: what is read before was sent before.
            slow = http.chat("scripted?text=abcd&tokens=2&pace=1h")
            self.assertEqual(await slow.until(2), 2)
            self.assertEqual((slow.status, slow.text()), (200, "abcd"))
            self.assertEqual(slow.headers[b"content-type"], b"text/event-stream")
            whole = await http.chat("scripted?text=abcd&tokens=30&pace=2ms").whole()
            self.assertEqual(whole.text(), "abcd" * 30)
            self.assertTrue(whole.body.endswith(b"data: [DONE]\n\n"))
            self.assertIsNone(whole.trailers)
            await self.left(slow)

    async def test_a_large_upload_arrives(self):
        async with connected() as http:
            # Longer than every window, so that it goes on only as it is read.
            answer = await http.chat("scripted?tokens=1", message="x" * 3_000_000, stream=False).whole()
            self.assertEqual(answer.status, 200, answer.body[:200])
            self.assertEqual(json.loads(answer.body)["usage"]["completion_tokens"], 1)

    async def test_refusals_are_answers_and_harm_nothing(self):
        async with connected() as http:
            nothing = await http.ask("GET", "/nothing").whole()
            self.assertEqual((nothing.status, json.loads(nothing.body)["error"]["type"]), (404, "invalid_request_error"))
            unknown = await http.chat("no-such-model").whole()
            self.assertEqual(unknown.status, 404)
            health = await http.ask("GET", "/healthz").whole()
            self.assertEqual((health.status, health.body), (200, b"ok\n"))

    async def test_requests_beside_each_other_do_not_wait_for_each_other(self):
        async with connected() as http:
            slow = http.chat("scripted?text=abcd&tokens=2&pace=1h")
            await slow.until(2)
            models = [http.ask("GET", "/v1/models") for _ in range(40)]
            chats = [http.chat("scripted?text=abcd&tokens=50") for _ in range(20)]
            for answer in await asyncio.gather(*(one.whole() for one in models + chats)):
                self.assertEqual(answer.status, 200)
            self.assertEqual({chat.text() for chat in chats}, {"abcd" * 50})
            await self.left(slow)

    async def test_a_cancel_is_seen_idle_and_in_mid_stream_and_the_next_request_is_served(self):
        async with connected() as http:
            for model in ("scripted?pace=1h", "scripted?tokens=1000000&pace=1ms"):
                stream = http.chat(model)
                await stream.until(2)
                await self.left(stream)
                self.assertEqual((await http.chat("scripted?text=abcd&tokens=3").whole()).text(), "abcd" * 3)

    async def test_an_upload_that_is_given_up_leaves_the_connection_as_it_was(self):
        async with connected() as http:
            head = [(b"content-type", b"application/json"), (b"content-length", b"100000")]
            upload = http.ask("POST", "/v1/chat/completions", b'{"model":', head, end=False)
            await http.ping()
            before = await asyncio.to_thread(ended, "client_gone")
            upload.reset()
            await self.gone(before)
            self.assertEqual((await http.ask("GET", "/healthz").whole()).status, 200)

    async def test_a_request_in_0_rtt_is_answered(self):
        tickets = []
        async with connected(session_ticket_handler=tickets.append) as http:
            await http.ask("GET", "/healthz").whole()
            while not tickets:
                await http.ping()
        async with connected(session_ticket=tickets[0], wait_connected=False) as http:
            # Nothing has been sent yet: both requests go with the first flight.
            health = http.ask("GET", "/healthz")
            chat = http.chat("scripted?text=abcd&tokens=5")
            self.assertEqual((await health.whole()).status, 200)
            self.assertEqual((await chat.whole()).text(), "abcd" * 5)
            self.assertTrue(http.handshake.session_resumed)
            self.assertTrue(http.handshake.early_data_accepted)

    async def test_a_priority_is_taken_as_a_wish(self):
        async with connected() as http:
            for wish in (b"u=1, i", b"u=7", b"u=99", b"nonsense;;", b""):
                answer = await http.chat("scripted?text=abcd&tokens=3", [(b"priority", wish)]).whole()
                self.assertEqual((answer.status, answer.text()), (200, "abcd" * 3), wish)

    async def test_a_header_that_belongs_to_another_protocol_is_refused(self):
        async with connected() as http:
            for name, value in ((b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"te", b"gzip")):
                stream = http.ask("GET", "/healthz", headers=[(name, value)])
                try:
                    await stream.whole()
                except ConnectionError:
                    pass
                self.assertNotEqual(stream.status, 200, name)
            self.assertEqual((await http.ask("GET", "/healthz").whole()).status, 200)

    async def test_a_gateway_that_stops_lets_streams_finish_and_says_goodbye(self):
        async with own_gateway() as (process, address, cert):
            async with connected(address, cert) as http:
                stream = http.chat("scripted?text=abcd&tokens=30&pace=20ms")
                await stream.until(2)
                process.send_signal(signal.SIGTERM)
                self.assertEqual((await stream.whole()).text(), "abcd" * 30)
                await asyncio.wait_for(http.wait_closed(), PATIENCE)
                self.assertEqual(http.terminated.error_code, H3_NO_ERROR)
            self.assertEqual(await asyncio.wait_for(process.wait(), PATIENCE), 0)

    async def test_leaving_is_clean_on_both_sides(self):
        before = await asyncio.to_thread(ended, "client_gone")
        async with connected() as http:
            stream = http.chat("scripted?pace=1h")
            await stream.until(2)
            http.close(error_code=H3_NO_ERROR)
            await asyncio.wait_for(http.wait_closed(), PATIENCE)
            self.assertEqual(http.terminated.error_code, H3_NO_ERROR, "it is our own close")
        await self.gone(before)


if __name__ == "__main__":
    unittest.main()
