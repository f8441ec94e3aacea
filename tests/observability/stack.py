"""The files under docker/, read: boards, rules, alerts, and what they ask Prometheus."""

import json
import re
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
RULES = DOCKER / "prometheus" / "rules"
RUNBOOKS = DOCKER / "runbooks"

# A name in PromQL that something follows which only a selector has, or nothing that only a function or a word has.
NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_:]*")
# Names in PromQL that are no series.
WORDS = set(
    """sum avg min max count by without on ignoring group_left group_right and or unless bool offset rate irate
    increase histogram_quantile scalar vector absent time""".split()
)


def yaml(path):
    return YAML(typ="safe", pure=True).load(path.read_text())


def boards():
    """Every dashboard by its file's name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((DOCKER / "grafana/dashboards").glob("*.json"))}


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def rules():
    """Every recording rule and alert of every file."""
    return [rule for path in sorted(RULES.glob("*.yml")) for group in yaml(path)["groups"] for rule in group["rules"]]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def panel_queries():
    """(where it stands, expression) of every panel."""
    return [
        (f"{name}: {panel['title']}", target["expr"])
        for name, board in boards().items()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def selectors(query):
    """The selectors in an expression, without their ranges: name and matchers. Every bare name here is a series or one
    of WORDS, as labels stand in brackets."""
    # First what holds names that are no series: texts, then lists of labels.
    texts = []

    def keep(found):
        texts.append(found[0])
        return f"\0{len(texts) - 1}\0"

    query = re.sub(r"\{[^}]*\}", keep, query)
    query = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    query = re.sub(r"\[[^\]]*\]", " ", query)
    found = []
    for name in NAME.finditer(query):
        if name[0] in WORDS or query[: name.start()][-1:].isdigit():
            continue
        matchers = re.match(r"\s*\0(\d+)\0", query[name.end() :])
        found.append(name[0] + (texts[int(matchers[1])] if matchers else ""))
    return found


def series(query):
    """The names of the series in an expression."""
    return {selector.partition("{")[0] for selector in selectors(query)}
