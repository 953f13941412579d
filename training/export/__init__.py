"""Datasets out of trees, and trees out of datasets."""

from __future__ import annotations

from treewright.training.export.atif import atif_documents
from treewright.training.export.columns import FORMATS, STYLES, columns
from treewright.training.export.dataset import export_dataset
from treewright.training.export.load import ImportReport, grown_trees, import_trees
from treewright.training.export.messages import conversation_tree, parse_conversation
from treewright.training.export.options import ExportOptions, ExportReport, TreeFilter
from treewright.training.export.raw import Grown, decode_tree, encode_tree
from treewright.training.export.rows import dpo_rows, prefix_rows, prm_rows, sft_rows
from treewright.training.export.view import View

__all__ = [
    "FORMATS",
    "STYLES",
    "ExportOptions",
    "ExportReport",
    "Grown",
    "ImportReport",
    "TreeFilter",
    "View",
    "atif_documents",
    "columns",
    "conversation_tree",
    "decode_tree",
    "dpo_rows",
    "encode_tree",
    "export_dataset",
    "grown_trees",
    "import_trees",
    "parse_conversation",
    "prefix_rows",
    "prm_rows",
    "sft_rows",
]
