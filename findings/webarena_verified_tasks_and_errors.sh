#!/bin/bash
# webarena-verified: a configuration whose `test_data_file` is not there evaluates the package's own 812 tasks, with a
# warning in a log; one that is there and holds other tasks is refused by the front door, which counts to 812 unless a
# subset is named. And a response whose status is a number is an error of the evaluation, no failure of the agent: who
# leaves errors out, or tries again, does so for wrong answers too.
# Exits 1 if that changes.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v; v/bin/python -m pip install -q webarena-verified==1.2.3 2> /dev/null
cat > t.py <<'P'
import json, sys
from importlib.metadata import version
from pathlib import Path
from webarena_verified.api import WebArenaVerified
from webarena_verified.types.config import WebArenaVerifiedConfig
site = {"__SHOPPING__": {"urls": ["http://127.0.0.1:1"]}}
Path("one.json").write_text(json.dumps([{
    "sites": ["shopping"], "task_id": 7, "intent_template_id": 1, "start_urls": ["__SHOPPING__"], "intent": "price?",
    "intent_template": "price?", "instantiation_dict": {}, "revision": 1,
    "eval": [{"evaluator": "AgentResponseEvaluator", "results_schema": {"type": "null"},
              "expected": {"task_type": "navigate", "status": "SUCCESS", "retrieved_data": None}}]}]))
print("webarena-verified", version("webarena-verified"))
missing = WebArenaVerified(config=WebArenaVerifiedConfig(test_data_file="none.json", environments=site))
print("a file that is not there:", len(missing.get_tasks()), "tasks")
try:
    WebArenaVerified(config=WebArenaVerifiedConfig(test_data_file="one.json", environments=site))
    refused = ""
except ValueError as error:
    refused = str(error)
print("a file of one task:", refused or "taken")
task = next(t for t in missing.get_tasks() if [s.value for s in t.sites] == ["shopping"])
trace = [{"startedDateTime": "2026-01-01T00:00:00Z", "time": 1, "request": {"method": "GET", "url": "http://127.0.0.1:1/", "headers": []},
          "response": {"status": 200, "headers": [], "content": {}, "redirectURL": ""}}]
found = {}
for name, status in (("a word", "NO"), ("a number", 3)):
    said = json.dumps({"task_type": "RETRIEVE", "status": status, "retrieved_data": None})
    found[name] = str(missing.evaluate_task(task_id=task.task_id, agent_response=said, network_trace=trace).status)
    print("a status that is", name + ":", found[name])
same = len(missing.get_tasks()) == 812 and "812" in refused and "failure" in found["a word"] and "error" in found["a number"]
print("as described" if same else "CHANGED")
sys.exit(not same)
P
v/bin/python t.py 2> /dev/null
