from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.benchmarks import models

DOCS = Path(__file__).parents[2] / "docs"


def test_one_architecture_of_each_kind_of_layer_is_exact() -> None:
    rows = {name: models.examined(name) for name in models.FEW}
    assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(models.FEW, "exact"), rows
    layers = {kind for row in rows.values() for kind in row["layers"].split(", ")}
    assert {"full_attention", "sliding_attention", "chunked_attention", "linear_attention", "conv"} <= layers
    figures = models._figures(list(rows.values()))
    assert figures["models_exact_share"]["value"] == 1 and figures["models_wrong"]["value"] == 0
    assert 0 < figures["hybrid_max_error"]["value"] <= 1e-9


def test_what_is_refused_wrong_or_no_decoder_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.examined("bloom")["verdict"] == "refused"
    assert models.examined("bart")["verdict"] == "no decoder"
    monkeypatch.setattr(models, "prepare", lambda model: 1 / 0)
    assert models.examined("llama")["verdict"] == "crash"
    monkeypatch.undo()
    whole = models._difference
    monkeypatch.setattr(models, "_difference", lambda *given: whole(*given) + 1e-3)
    row = models.examined("llama")
    assert row["verdict"] == "wrong" and row["difference"] >= 1e-3


def test_the_command_prints_and_writes_the_table_of_what_was_asked_for(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["bench", "models", "--only", "qwen3", "--json", str(tmp_path / "models.json")])
    assert said.exit_code == 0 and "qwen3" in said.output and "exact" in said.output
    result = json.loads((tmp_path / "models.json").read_text())
    assert [row["verdict"] for row in result["models"]] == ["exact"]
    assert result["figures"]["models_wrong"]["value"] == 0 == result["figures"]["models_crash"]["value"]


def test_the_page_of_the_docs_is_made_from_the_committed_figures() -> None:
    result, oldest = (json.loads((DOCS / f"{name}.json").read_text()) for name in ("models", "models-oldest"))
    assert (DOCS / "models.md").read_text() == models.page(result, oldest)
    for one in (result, oldest):
        assert not one["quick"] and len(one["models"]) > 100
        assert one["figures"]["models_wrong"]["value"] == 0 == one["figures"]["models_crash"]["value"]


def test_the_oldest_transformers_of_the_table_is_the_oldest_that_the_package_takes() -> None:
    oldest = json.loads((DOCS / "models-oldest.json").read_text())["versions"]["transformers"]
    said = (DOCS.parent / "pyproject.toml").read_text()
    assert f'"transformers>={oldest.rpartition(".")[0]}"' in said
    assert f"transformers=={oldest}" in (DOCS.parent / "Makefile").read_text()


def test_a_hybrids_step_is_only_timed_when_trees_and_rows_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.benchmarks import models_step

    monkeypatch.setattr(models_step, "AGREE", 1e-12)
    with pytest.raises(RuntimeError, match="nothing is timed"):
        models_step.hybrid_step(quick=True)
