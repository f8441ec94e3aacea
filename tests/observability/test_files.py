"""What can be said of docker/ without running any of it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import stack
from stack import DOCKER, ROOT, RUNBOOKS

PROGRAM = os.environ.get("SLUICEGATE_PROGRAM", "")

# Units of Grafana's that our panels have; one that it does not know is shown as a bare text behind the figure.
UNITS = {"none", "short", "percentunit", "s", "bytes", "Bps", "reqps", "ops", "pps"}
# Services whose images have nothing to check themselves with.
NO_HEALTH_CHECK = {"otel-collector"}
# Services that end, or that nobody waits for.
NO_SERVICE = {"keys", "visitor"}


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    return done.returncode, done.stdout + done.stderr


class Boards(unittest.TestCase):
    def test_the_json_is_what_the_toml_makes(self):
        status, said = run(sys.executable, DOCKER / "grafana/boards.py", "--check")
        self.assertEqual(status, 0, said)

    def test_no_two_boards_share_a_uid_and_no_two_panels_an_id(self):
        boards = stack.boards()
        self.assertEqual(len({board["uid"] for board in boards.values()}), len(boards))
        for name, board in boards.items():
            ids = [panel["id"] for panel in board["panels"]]
            self.assertEqual(len(set(ids)), len(ids), name)
            self.assertGreaterEqual(board["schemaVersion"], 39, name)

    def test_each_panel_has_a_unit_a_description_and_a_runbook(self):
        for name, board in stack.boards().items():
            for panel in stack.panels(board):
                with self.subTest(board=name, panel=panel["title"]):
                    self.assertIn(panel["fieldConfig"]["defaults"]["unit"], UNITS)
                    self.assertGreater(len(panel["description"]), 15)
                    [link] = panel["links"]
                    self.assertTrue((RUNBOOKS / Path(link["url"]).name).is_file(), link)

    def test_the_data_source_is_a_variable_and_rates_follow_the_scrape_interval(self):
        for name, board in stack.boards().items():
            for panel in stack.panels(board):
                with self.subTest(board=name, panel=panel["title"]):
                    for target in panel["targets"]:
                        self.assertEqual(target["datasource"]["uid"], "${datasource}")
                        self.assertNotRegex(target["expr"], r"rate\([^)]*\[\d", "use $__rate_interval")
                        self.assertNotIn("<", re.sub(r"<=? ?[\d(]", "", target["expr"]), "a selector has no such name")

    def test_panels_lie_beside_each_other(self):
        for name, board in stack.boards().items():
            taken = set()
            for panel in board["panels"]:
                place = panel["gridPos"]
                cells = {
                    (x, y)
                    for x in range(place["x"], place["x"] + place["w"])
                    for y in range(place["y"], place["y"] + place["h"])
                }
                self.assertFalse(taken & cells, f"{name}: {panel['title']}")
                self.assertLessEqual(place["x"] + place["w"], 24, name)
                taken |= cells

    def test_links_lead_to_provisioned_data_sources_with_the_time_of_the_board(self):
        sources = stack.yaml(DOCKER / "grafana/provisioning/datasources/sluicegate.yaml")["datasources"]
        kinds = {source["uid"]: source["type"] for source in sources}
        for name, board in stack.boards().items():
            for panel in stack.panels(board):
                links = panel["fieldConfig"]["defaults"]["links"]
                self.assertEqual([link["title"] for link in links], ["Traces", "Logs"])
                for link in links:
                    with self.subTest(board=name, panel=panel["title"], link=link["title"]):
                        url = urlsplit(link["url"])
                        pane = json.loads(parse_qs(url.query)["panes"][0])["a"]
                        self.assertEqual(pane["range"], {"from": "${__from}", "to": "${__to}"})
                        [query] = pane["queries"]
                        self.assertEqual(kinds[pane["datasource"]], query["datasource"]["type"])
                        self.assertEqual(query["datasource"]["uid"], pane["datasource"])

    def test_links_between_data_sources_exist(self):
        sources = stack.yaml(DOCKER / "grafana/provisioning/datasources/sluicegate.yaml")["datasources"]
        uids = {source["uid"] for source in sources}
        named = re.findall(r"datasourceUid: (\S+)", (DOCKER / "grafana/provisioning/datasources/sluicegate.yaml").read_text())
        self.assertTrue(named)
        self.assertLessEqual(set(named), uids)


class Alerts(unittest.TestCase):
    def test_each_says_how_bad_what_and_what_to_do(self):
        for alert in stack.alerts():
            with self.subTest(alert=alert["alert"]):
                self.assertIn(alert["labels"]["severity"], {"page", "ticket", "info"})
                notes = alert["annotations"]
                self.assertEqual(set(notes), {"summary", "description", "runbook_url"})
                self.assertTrue((RUNBOOKS / Path(notes["runbook_url"]).name).is_file(), notes["runbook_url"])

    def test_no_two_have_the_same_name(self):
        names = [alert["alert"] for alert in stack.alerts()]
        self.assertEqual(len(set(names)), len(names))

    def test_each_has_a_unit_test_in_which_it_fires(self):
        fires = set()
        for path in (DOCKER / "prometheus/tests").glob("*.yml"):
            for test in stack.yaml(path)["tests"]:
                fires |= {check["alertname"] for check in test.get("alert_rule_test", []) if check["exp_alerts"]}
                for check in test.get("promql_expr_test", []):
                    for sample in check["exp_samples"]:
                        fires |= set(re.findall(r'ALERTS\{alertname="(\w+)", alertstate="firing"', sample["labels"]))
        self.assertEqual({alert["alert"] for alert in stack.alerts()} - fires, set())

    def test_every_runbook_is_linked_to(self):
        linked = {Path(alert["annotations"]["runbook_url"]).name for alert in stack.alerts()}
        for board in stack.boards().values():
            linked |= {Path(panel["links"][0]["url"]).name for panel in stack.panels(board)}
        self.assertEqual({path.name for path in RUNBOOKS.glob("*.md")}, linked)

    def test_a_runbook_says_what_it_means_where_to_look_and_what_to_do(self):
        for path in RUNBOOKS.glob("*.md"):
            text = path.read_text()
            self.assertRegex(text, r"^# ", path.name)
            if path.name != "reading-the-boards.md":
                for heading in ("## What it means", "## Where to look", "## What to do"):
                    self.assertIn(heading, text, path.name)

    def test_promtool_accepts_the_rules_and_the_configuration(self):
        status, said = run("promtool", "check", "rules", "--lint-fatal", *sorted(stack.RULES.glob("*.yml")))
        self.assertEqual(status, 0, said)
        status, said = run("promtool", "check", "config", "--syntax-only", DOCKER / "prometheus/prometheus.yml")
        self.assertEqual(status, 0, said)

    def test_promtool_passes_the_unit_tests(self):
        status, said = run("promtool", "test", "rules", *sorted((DOCKER / "prometheus/tests").glob("*.yml")))
        self.assertEqual(status, 0, said)


class Stack(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.compose = stack.yaml(DOCKER / "compose.yaml")
        cls.services = cls.compose["services"]

    def test_the_compose_file_follows_its_schema(self):
        check = Path(sys.executable).with_name("check-jsonschema")
        status, said = run(check, "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")
        self.assertEqual(status, 0, said)

    def test_every_image_is_pinned_to_a_version(self):
        images = {service["image"] for service in self.services.values()}
        text = (DOCKER / "Dockerfile").read_text()
        versions = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))
        stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))
        for image in re.findall(r"^FROM (\S+)", text, re.M):
            if image not in stages:
                images.add(re.sub(r"\$\{(\w+)\}", lambda name: versions[name[1]], image))
        self.assertGreater(len(images), 8)
        for image in images:
            self.assertRegex(image, r":v?\d+\.\d+(\.\d+)?[\w.-]*$")

    def test_every_service_is_locked_down_and_bounded(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                self.assertIs(service["read_only"], True)
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                self.assertIn("mem_limit", service)
                for port in service.get("ports", []):
                    self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_every_service_has_a_health_check_or_a_reason(self):
        for name, service in self.services.items():
            has_one = "test" in service.get("healthcheck", {})
            self.assertEqual(has_one, name not in NO_HEALTH_CHECK | NO_SERVICE, name)

    def test_what_is_mounted_and_waited_for_exists(self):
        for name, service in self.services.items():
            for mount in service.get("volumes", []):
                source = mount.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((DOCKER / source).exists(), mount)
                else:
                    self.assertIn(source, self.compose["volumes"])
            for other, how in service.get("depends_on", {}).items():
                self.assertIn(other, self.services, name)
                if how["condition"] == "service_healthy":
                    self.assertIn("test", self.services[other]["healthcheck"], f"{name} waits for {other}")

    def test_the_image_has_the_compiler_of_the_repository_and_no_root(self):
        text = (DOCKER / "Dockerfile").read_text()
        channel = re.search(r'channel = "(.+)"', (ROOT / "rust-toolchain.toml").read_text())[1]
        self.assertIn(f"ARG RUST={channel}-", text)
        self.assertEqual(set(re.findall(r"^USER (\S+)$", text, re.M)), {"10001:10001"})
        version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        self.assertEqual(self.services["gateway"]["image"], f"sluicegate:{version}")

    def test_the_collectors_pipelines_are_made_of_what_is_configured(self):
        config = stack.yaml(DOCKER / "otel-collector.yaml")
        used = {part: set() for part in ("receivers", "processors", "exporters")}
        for pipeline in config["service"]["pipelines"].values():
            for part, names in pipeline.items():
                used[part] |= set(names)
        for part, names in used.items():
            self.assertEqual(names, set(config[part]), part)

    def test_the_collector_sends_to_services_at_ports_they_listen_on(self):
        exporters = stack.yaml(DOCKER / "otel-collector.yaml")["exporters"]
        tempo = stack.yaml(DOCKER / "tempo.yaml")
        grpc = tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
        self.assertEqual(exporters["otlp/tempo"]["endpoint"], f"tempo:{grpc.split(':')[1]}")
        port = stack.yaml(DOCKER / "loki.yaml")["server"]["http_listen_port"]
        self.assertEqual(exporters["otlphttp/loki"]["endpoint"], f"http://loki:{port}/otlp")

    def test_the_gateway_sends_its_traces_to_the_collector(self):
        grpc = stack.yaml(DOCKER / "otel-collector.yaml")["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
        endpoint = self.services["gateway"]["environment"]["SLUICEGATE_TELEMETRY__OTLP_ENDPOINT"]
        self.assertEqual(endpoint, f"http://otel-collector:{grpc.split(':')[1]}")

    def test_prometheus_scrapes_services_of_the_stack(self):
        for job in stack.yaml(DOCKER / "prometheus/prometheus.yml")["scrape_configs"]:
            for target in job["static_configs"][0]["targets"]:
                host = target.split(":")[0]
                self.assertTrue(host == "localhost" or host in self.services, target)

    @unittest.skipUnless(PROGRAM, "SLUICEGATE_PROGRAM names no program")
    def test_the_gateway_accepts_its_configuration(self):
        with tempfile.TemporaryDirectory() as folder:
            keys = Path(folder) / "keys.toml"
            status, said = run(PROGRAM, "key", "--id", "prometheus", "--scope", "ops:read", "--append", keys)
            self.assertEqual(status, 0, said)
            plain = {name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_")}
            config = ["--config", DOCKER / "sluicegate.toml"]
            given = self.services["gateway"]["environment"] | {"SLUICEGATE_AUTH__KEYS_FILE": str(keys)}
            status, said = run(PROGRAM, "check", *config, env=plain | given)
            self.assertEqual(status, 0, said)
            # Alone, the image asks who may call before it opens a model to the network.
            status, said = run(PROGRAM, "check", *config, env=plain)
            self.assertEqual(status, 2, said)
            self.assertIn("allow_anonymous", said)
            status, said = run(PROGRAM, "check", *config, env=plain | {"SLUICEGATE_AUTH__ALLOW_ANONYMOUS": "true"})
            self.assertEqual(status, 0, said)


if __name__ == "__main__":
    unittest.main()
