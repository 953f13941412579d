#!/bin/bash
# Inspect: its default log, NAME.eval, is a ZIP archive that Python's own zipfile lists and cannot read. Entries are packed
# with Zstandard (method 93), which zipfile knows from Python 3.14 on; before, read() raises NotImplementedError. Inspect
# reads them by a library that teaches zipfile the method when inspect_ai is imported.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install inspect_ai==0.3.285
cd "$folder"
"$folder/venv/bin/python" - <<'PY' > /dev/null
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

said = ModelOutput.from_content("mockllm/model", "3")
said.usage = ModelUsage(input_tokens=3, output_tokens=1, total_tokens=4)
task = Task(dataset=[Sample(input="1 + 2?", target="3")], solver=generate(), scorer=includes())
eval(task, model=get_model("mockllm/model", custom_outputs=[said]), log_dir="logs", log_format="eval", display="none")
PY
"$folder/venv/bin/python" - <<'PY'
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

(path,) = Path("logs").glob("*.eval")
with zipfile.ZipFile(path) as archive:
    methods = {entry.compress_type for entry in archive.infolist()}
    try:
        archive.read("header.json")
        read = "read"
    except NotImplementedError as error:
        read = f"NotImplementedError: {error}"
print("inspect_ai", version("inspect_ai"), "Python", sys.version.split()[0])
print("methods of packing:", methods, "header.json:", read)
sys.exit(0 if methods == {93} and (sys.version_info >= (3, 14)) == (read == "read") else 1)
PY
