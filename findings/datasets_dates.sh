#!/bin/bash
# `datasets` reads JSON lines and turns strings into times: where every string of a field looks like a date, the field
# becomes a timestamp, inside messages too, and "2024-05-01" comes back as 2024-05-01 00:00:00. A file of conversations
# whose ids are dates, or whose answers are, is no longer the file that was written; from_list keeps the same rows as text.
# Exits 1 if that changes.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v; v/bin/python -m pip install -q datasets==5.2.0 pyarrow==26.0.1 2> /dev/null
cat > t.py <<'P'
import json, sys
import datasets
rows = [{"id": f"2024-05-0{i}", "messages": [{"role": "user", "content": "when?"}, {"role": "assistant", "content": f"on 2024-05-0{i}"}]} for i in (1, 2)]
open("t.jsonl", "w").write("\n".join(map(json.dumps, rows)))
read = datasets.load_dataset("json", data_files="t.jsonl", split="train", cache_dir="cache")
kept = datasets.Dataset.from_list(rows)
print("datasets", datasets.__version__)
print("written      ", repr(rows[0]["id"]))
print("json lines   ", repr(read[0]["id"]), read.features["id"])
print("from_list    ", repr(kept[0]["id"]), kept.features["id"])
sys.exit(read.features["id"].dtype != "timestamp[s]" or kept[0]["id"] != rows[0]["id"])
P
HF_HOME="$folder" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 v/bin/python t.py 2> /dev/null
