"""The real thing: a loaded gateway, scraped by a real Prometheus with the rules of docker/, which is then asked every
query of every panel, rule and alert. Each must have an answer that is no error and is not empty."""

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import stack

PROGRAM = os.environ.get("SLUICEGATE_PROGRAM", "")

# What the variables of a board stand for here.
VARIABLES = {
    "$job": "sluicegate",
    "$instance": ".*",
    "$model": ".*",
    # Long enough for what was done once at the beginning.
    "$__rate_interval": "5m",
    "$__range": "5m",
}
# How long Prometheus may take to see what was done; on a slow machine everything comes later, and is not wrong.
PATIENCE = 60

# Panels that may have nothing to say after so short a load, and why. Their queries must still be without error.
SILENT = {
    "capacity.json: Guesses that were right": "an engine guesses only where it has measured that it pays",
    "streams.json: Streams reset by HTTP/2 peers": "clients that leave with their connection reset no stream",
}

# Series that no board, rule or alert asks for, and why.
NOT_SHOWN = {
    "process_virtual_memory_bytes": "means little for a program that maps its models",
    "sluicegate_runtime_busy_seconds_total": "for sums over other times; the ratio is shown",
    "sluicegate_runtime_parks_total": "how often threads had nothing to do, which the ratio says as well",
}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Gateway:
    """A gateway with every part on: TLS, QUIC, keys, limits, models that work and one that dies."""

    def __init__(self, folder, until):
        keys = folder / "keys.toml"
        self.operator = self.key(keys, "prometheus", "--scope", "ops:read")
        self.caller = self.key(keys, "caller")
        self.tight = self.key(keys, "tight", "--class", "tight")
        settings = [
            'server.listen="127.0.0.1:0"',
            'tls.listen="127.0.0.1:0"',
            'ops.listen="127.0.0.1:0"',
            "ops.require_key=true",
            f'server.state_dir="{folder}/state"',
            f'auth.keys_file="{keys}"',
            "limits.classes.default.tokens_per_minute=10000000",
            "limits.classes.tight.requests_per_minute=1",
            'drain.lag="0s"',
            'drain.timeout="1s"',
            """models=[
                {name="demo",path="src/engine/llama/demo/sluicegate-demo-q8_0.gguf"},
                {name="scripted",engine="scripted",script={tokens=40,pace="5ms",slots=2}},
                {name="narrow",engine="scripted",script={tokens=40,pace="1s",slots=1,waiting=0}},
            ]""",
        ]
        command = [PROGRAM, "serve"] + [word for setting in settings for word in ("--set", setting)]
        log = open(folder / "gateway.log", "w", encoding="utf-8")
        until.callback(log.close)
        self.process = subprocess.Popen(command, cwd=stack.ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        until.callback(self.process.stdout.close)
        until.callback(self.process.wait, 30)
        until.callback(self.process.terminate)
        for line in self.process.stdout:
            for name, pattern in (("url", r"open (http://[^/]*)/"), ("secure", r"TLS (https://[^/]*)/")):
                if found := re.search(pattern, line):
                    setattr(self, name, found[1])
            if found := re.search(r"operators http://([^/]*)/", line):
                self.operators = found[1]
                return
        raise RuntimeError((folder / "gateway.log").read_text())

    @staticmethod
    def key(file, name, *more):
        command = [PROGRAM, "key", "--id", name, "--append", file, *more]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def chat(self, transport, model):
        url = self.secure if transport in ("--http3", "--quic") else self.url
        command = [PROGRAM, "chat", "--url", url, "--model", model, "--max-tokens", "40", "--temperature", "0"]
        command += ["--insecure"] + [transport] * bool(transport) + ["Tell me a story. Tell me a story. Tell me a story."]
        environment = os.environ | {"SLUICEGATE_API_KEY": self.caller}
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=30)

    def open(self, key, body):
        """An answer over HTTP/1.1, to be read."""
        headers = {"authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=30)

    def post(self, key, body):
        """The status of an answer that is read to its end."""
        try:
            with self.open(key, body) as answer:
                return answer.read() and answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def metrics(self):
        request = urllib.request.Request(f"http://{self.operators}/metrics", headers={"authorization": f"Bearer {self.operator}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()


class Prometheus:
    """Prometheus as docker/ configures it, but that it looks every second."""

    def __init__(self, folder, gateway, until):
        rules = folder / "rules"
        rules.mkdir()
        for path in stack.RULES.glob("*.yml"):
            (rules / path.name).write_text(re.sub(r"interval: \d+s", "interval: 1s", path.read_text()))
        (folder / "operator.key").write_text(gateway.operator)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{rules}/*.yml"],
            "scrape_configs": [
                {
                    "job_name": "sluicegate",
                    "authorization": {"credentials_file": str(folder / "operator.key")},
                    "static_configs": [{"targets": [gateway.operators]}],
                }
            ],
        }
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        log = open(folder / "prometheus.log", "w", encoding="utf-8")
        until.callback(log.close)
        process = subprocess.Popen(command, stdout=log, stderr=log)
        until.callback(process.wait, 30)
        until.callback(process.terminate)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                    return
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "prometheus.log").read_text()) from None
                time.sleep(0.1)

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from None

    def ask(self, query):
        """What an expression gives now. An expression with an error in it fails the test."""
        return self.get("query", query=query)["result"]


def filled_in(query):
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


@unittest.skipUnless(PROGRAM, "SLUICEGATE_PROGRAM names no program")
class Live(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        until = contextlib.ExitStack()
        cls.addClassCleanup(until.close)
        folder = Path(until.enter_context(tempfile.TemporaryDirectory()))
        cls.gateway = Gateway(folder, until)
        cls.prometheus = Prometheus(folder, cls.gateway, until)
        cls.load()
        # One for all tests: what has not come by then does not come.
        cls.deadline = time.monotonic() + PATIENCE

    @classmethod
    def load(cls):
        """Somebody for every panel: all transports and models, refused callers, wrong requests, a line. What happens is
        seen as a change, so Prometheus must have looked before."""
        cls.wait_for('up{job="sluicegate"} == 1', time.monotonic() + PATIENCE)
        ask = {"model": "scripted", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        work = [(cls.gateway.chat, how, model) for how in ("", "--http2", "--http3", "--quic") for model in ("demo", "scripted")]
        work += [(cls.gateway.post, cls.gateway.caller, ask)] * 6
        work += [(cls.gateway.post, cls.gateway.caller, {**ask, "model": "nobody"})] * 2
        work += [(cls.gateway.post, cls.gateway.tight, ask)] * 3
        work += [(cls.gateway.post, "sgk_wrong", ask)] * 2
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda each: each[0](*each[1:]), work))
        # While one has the only place, the next is turned away; then the first one leaves.
        narrow = {**ask, "model": "narrow"}
        with cls.gateway.open(cls.gateway.caller, narrow) as answer:
            answer.readline()
            statuses.append(cls.gateway.post(cls.gateway.caller, narrow))
        for status in (200, 401, 404, 429, 503):
            assert status in statuses, f"{status} is not among {statuses}"

    @classmethod
    def wait_for(cls, query, deadline=None):
        deadline = deadline or cls.deadline
        while not (found := cls.prometheus.ask(query)):
            if time.monotonic() > deadline:
                return found
            time.sleep(0.2)
        return found

    def all_answer(self, queries):
        """Asks (where, expression) until each has an answer, all against one deadline."""
        left = set(queries)
        self.assertTrue(left)
        while left:
            left = {(where, query) for where, query in left if not self.prometheus.ask(filled_in(query)) and where not in SILENT}
            if time.monotonic() > self.deadline:
                break
            time.sleep(0.2)
        self.assertEqual(sorted(left), [], "these have no data")

    def test_every_query_of_every_panel_has_data(self):
        queries = stack.panel_queries()
        self.assertLessEqual(set(SILENT), {where for where, _ in queries})
        self.all_answer(queries)

    def test_every_variable_of_every_board_has_values(self):
        for name, board in stack.boards().items():
            for variable in board["templating"]["list"]:
                if variable["type"] == "query":
                    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
                    found = self.wait_for(filled_in(series))
                    self.assertTrue(all(label in each["metric"] for each in found) and found, f"{name}: {variable}")

    def test_every_rule_records_something(self):
        recorded = {rule["record"] for rule in stack.rules() if "record" in rule}
        self.all_answer((name, name) for name in recorded)

    def test_every_alert_can_be_computed_and_every_series_in_it_is_there(self):
        for alert in stack.alerts():
            self.prometheus.ask(alert["expr"])
        self.all_answer((alert["alert"], each) for alert in stack.alerts() for each in stack.selectors(alert["expr"]))

    def test_prometheus_finds_no_rule_unhealthy(self):
        self.wait_for("sluicegate:slo_error_budget:ratio")
        for group in self.prometheus.get("rules")["groups"]:
            for rule in group["rules"]:
                self.assertEqual(rule.get("lastError", ""), "", rule["name"])

    def test_a_gateway_with_nothing_wrong_pages_nobody(self):
        self.wait_for("sluicegate:slo_error_budget:ratio")
        firing = self.prometheus.ask('ALERTS{alertstate="firing", severity="page"}')
        self.assertEqual(firing, [])

    def test_promtool_finds_nothing_wrong_with_the_metrics(self):
        done = subprocess.run(["promtool", "check", "metrics"], input=self.gateway.metrics(), capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_what_is_exposed_is_shown_and_what_is_shown_is_exposed(self):
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", self.gateway.metrics(), re.M))
        exposed = set(kinds)
        recorded = {rule["record"] for rule in stack.rules() if "record" in rule}
        queries = [query for _, query in stack.panel_queries()] + [rule["expr"] for rule in stack.rules()]
        asked = set().union(*map(stack.series, queries)) - recorded
        # Prometheus' own.
        asked -= {"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_scraped"}
        for name in [name for name, kind in kinds.items() if kind == "histogram"]:
            parts = {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
            if asked & parts:
                asked = asked - parts | {name}
        self.assertEqual(sorted(asked - exposed), [], "asked for, and not exposed")
        self.assertEqual(sorted(exposed - asked - set(NOT_SHOWN)), [], "exposed, and neither shown nor in NOT_SHOWN")
        self.assertEqual(sorted(set(NOT_SHOWN) & asked), [], "in NOT_SHOWN, and shown")


if __name__ == "__main__":
    unittest.main()
