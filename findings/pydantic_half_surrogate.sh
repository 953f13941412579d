#!/bin/bash
# pydantic: model_validate_json refuses a whole document for half of a surrogate pair in one of its texts, which
# json.loads reads; a model's answer that is cut inside an emoji has one. The same model takes the same text from
# json.loads, and it cannot be written as UTF-8 afterwards. -Infinity, which is no JSON, is accepted.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install pydantic==2.14.3 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import json
import sys

import pydantic


class Answer(pydantic.BaseModel):
    text: str
    logprob: float = 0.0


def outcome(read):
    try:
        return repr(read())
    except pydantic.ValidationError as error:
        return "refused: " + error.errors()[0]["type"]


half = '{"text": "half \\ud83d"}'
found = {
    "json.loads": outcome(lambda: json.loads(half)["text"]),
    "model_validate_json": outcome(lambda: Answer.model_validate_json(half).text),
    "model_validate(json.loads)": outcome(lambda: Answer.model_validate(json.loads(half)).text),
    "model_validate_json of -Infinity": outcome(
        lambda: Answer.model_validate_json('{"text": "", "logprob": -Infinity}').logprob
    ),
}
print("pydantic", pydantic.VERSION)
for name, value in found.items():
    print(f"{name}: {value}")
want = ["'half \\ud83d'", "refused: json_invalid", "'half \\ud83d'", "-inf"]
sys.exit(0 if list(found.values()) == want else 1)
PY
