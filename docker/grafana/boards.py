#!/usr/bin/env python3
"""Writes the dashboards: docker/grafana/boards/*.toml to docker/grafana/dashboards/*.json.

A board is a list of rows of panels; what all panels share (data source, selectors, colours, links to traces, logs and
runbooks) is here, once. `boards.py --check` says whether the JSON is what the TOML makes, and writes nothing.

In a query, <gateway>, <model> and <recorded> stand for the selectors that the variables at a board's top make.
"""

import json
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).parent
SOURCE, TARGET = HERE / "boards", HERE / "dashboards"

# Of Grafana 10.4; newer ones read it and convert it on their own.
SCHEMA = 39
# Beside Grafana, where docker/compose.yaml shows the folder of that name.
RUNBOOKS = "/public/runbooks/"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}

SELECTORS = {
    "<gateway>": 'job=~"$job", instance=~"$instance"',
    "<model>": 'job=~"$job", instance=~"$instance", model=~"$model"',
    # Rules keep no instance.
    "<recorded>": 'job=~"$job", model=~"$model"',
}

# What each kind of panel gets beside its queries.
OPTIONS = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    },
    "gauge": {
        "minVizHeight": 75,
        "minVizWidth": 75,
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showThresholdLabels": False,
        "showThresholdMarkers": True,
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "fill": "dark-orange"},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True},
    },
    "table": {"cellHeight": "sm", "showHeader": True, "footer": {"show": False}},
}
CUSTOM = {
    "drawStyle": "line",
    "fillOpacity": 10,
    "lineWidth": 1,
    "showPoints": "never",
    "spanNulls": False,
}


def explore(source, query):
    """A link to Explore for the board's time range. What stands in ${…} is filled in by Grafana."""
    query = {"refId": "A", "datasource": {"type": source, "uid": f"sluicegate-{source}"}, **query}
    time = {"from": "${__from}", "to": "${__to}"}
    panes = {"a": {"datasource": f"sluicegate-{source}", "queries": [query], "range": time}}
    pieces = re.split(r"(\$\{[^}]*\})", json.dumps(panes, separators=(",", ":")))
    text = "".join(piece if piece.startswith("${") else quote(piece, safe="") for piece in pieces)
    return f"/explore?schemaVersion=1&orgId=1&panes={text}"


def data_links(by_model, has_models):
    """From a point to the traces and the logs of its time, and of its model where it has one."""
    if by_model:
        trace, log = ' && span.gen_ai.request.model="${__field.labels.model}"', ' | model="${__field.labels.model}"'
    elif has_models:
        # Model names may have dots: a regular expression takes those for any character, which does no harm; escaped
        # they would not be JSON.
        trace, log = ' && span.gen_ai.request.model=~"${model:pipe}"', ' | model=~"${model:pipe}"'
    else:
        trace, log = "", ""
    traces = {"queryType": "traceql", "limit": 50, "query": f'{{resource.service.name="sluicegate"{trace}}}'}
    logs = {"queryType": "range", "expr": f'{{service_name="sluicegate"}}{log}'}
    return [
        {"title": "Traces", "url": explore("tempo", traces), "targetBlank": True},
        {"title": "Logs", "url": explore("loki", logs), "targetBlank": True},
    ]


def thresholds(steps):
    """Steps of [colour, from]; "base" is everything below the next one."""
    steps = [{"color": color, "value": None if value == "base" else value} for color, value in steps]
    return {"mode": "absolute", "steps": steps}


def panel(given, number, place, has_models):
    """One panel out of its table in the TOML."""
    kind = given["kind"]
    queries = [[query, ""] if isinstance(query, str) else query for query in given["queries"]]
    targets = []
    for letter, (query, legend) in zip("ABCDEFGH", queries, strict=False):
        for name, selector in SELECTORS.items():
            query = query.replace(name, selector)
        target = {"refId": letter, "datasource": PROMETHEUS, "expr": query.strip(), "legendFormat": legend or "__auto"}
        if kind == "heatmap":
            target |= {"format": "heatmap", "legendFormat": "{{le}}"}
        if kind == "table":
            target |= {"format": "table", "instant": True}
        targets.append(target)
    by_model = all("{{model}}" in legend for _, legend in queries)
    defaults = {"unit": given["unit"], "links": data_links(by_model, has_models)}
    defaults |= {key: given[key] for key in ("min", "max", "decimals", "noValue") if key in given}
    if "thresholds" in given:
        defaults |= {"thresholds": thresholds(given["thresholds"]), "color": {"mode": "thresholds"}}
    if "values" in given:
        texts = {value: {"text": text, "color": color} for value, text, color in given["values"]}
        defaults["mappings"] = [{"type": "value", "options": texts}]
    if kind == "timeseries":
        stacking = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40} if given.get("stack") else {}
        line = {"scaleDistribution": {"type": "log", "log": 10}} if given.get("log") else {}
        defaults["custom"] = CUSTOM | stacking | line
    options = dict(OPTIONS[kind])
    if kind == "heatmap":
        options["yAxis"] = {"unit": given["unit"]}
    made = {
        "id": number,
        "type": kind,
        "title": given["title"],
        "description": " ".join(given["description"].split()),
        "datasource": PROMETHEUS,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "links": [{"title": "Runbook", "url": f"{RUNBOOKS}{given['runbook']}.md", "targetBlank": True}],
    }
    if kind == "table":
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
    return made


def variable(name, label, series, depends=""):
    """A variable with the values that a label has; with `depends` several may be chosen."""
    query = f"label_values({series}, {name})"
    many = bool(depends)
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"qryType": 1, "query": query, "refId": "variable"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        "allValue": ".*" if many else None,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]} if many else {},
        "hide": 0,
    }


def variables(has_models):
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}
    made = [
        source,
        variable("job", "Job", "sluicegate_build_info"),
        variable("instance", "Gateway", 'sluicegate_build_info{job=~"$job"}', "job"),
    ]
    if has_models:
        made.append(variable("model", "Model", 'sluicegate_requests_total{job=~"$job"}', "job"))
    return made


def board(given):
    """A dashboard out of its TOML."""
    has_models = given.get("models", True)
    panels, number, y = [], 0, 0
    for row in given["row"]:
        if "title" in row:
            number += 1
            place = {"x": 0, "y": y, "w": 24, "h": 1}
            panels.append({"id": number, "type": "row", "title": row["title"], "collapsed": False, "gridPos": place, "panels": []})
            y += 1
        # Panels of a row share its width evenly, and start a new line after every `across`.
        height, across = row.get("height", 8), row.get("across", len(row["panel"]))
        for index, each in enumerate(row["panel"]):
            number += 1
            line, column = divmod(index, across)
            last = min(across, len(row["panel"]) - line * across)
            width = 24 // last
            place = {"x": column * width, "y": y + line * height, "w": width, "h": height}
            panels.append(panel(each, number, place, has_models))
        y += height * -(-len(row["panel"]) // across)
    link = {"type": "dashboards", "tags": ["sluicegate"], "title": "Sluicegate", "asDropdown": True, "includeVars": True, "keepTime": True}
    return {
        "uid": given["uid"],
        "title": f"Sluicegate: {given['title']}",
        "description": " ".join(given["description"].split()),
        "tags": ["sluicegate"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [link],
        "templating": {"list": variables(has_models)},
        "annotations": {"list": []},
        "panels": panels,
    }


def main():
    is_check = sys.argv[1:] == ["--check"]
    made = {path.stem: board(tomllib.loads(path.read_text())) for path in sorted(SOURCE.glob("*.toml"))}
    texts = {TARGET / f"{name}.json": json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in made.items()}
    there = {path: path.read_text() for path in TARGET.glob("*.json")}
    if not is_check:
        for path in there.keys() - texts.keys():
            path.unlink()
        for path, text in texts.items():
            path.write_text(text)
    elif texts != there:
        stale = sorted(path.name for path in texts.keys() | there.keys() if texts.get(path) != there.get(path))
        sys.exit(f"not what docker/grafana/boards.py makes: {', '.join(stale)}; run it and commit the result")


if __name__ == "__main__":
    main()
