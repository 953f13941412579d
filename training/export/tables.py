"""Tables on disk: parquet with zstd where pyarrow is installed, JSON lines always."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import BadLine, json_lines, json_value
from treewright.training.export.columns import arrow_schema
from treewright.training.export.forms import Sparse
from treewright.training.export.view import Row

__all__ = [
    "FILE_TYPES",
    "JsonlTable",
    "ParquetTable",
    "Table",
    "need_pyarrow",
    "open_table",
    "read_rows",
]

FILE_TYPES = ("parquet", "jsonl")
EXTENSION = b"ARROW:extension:name"
GROUP = 1024
GROUP_BYTES = 1 << 26


def has_pyarrow() -> bool:
    import importlib.util

    return importlib.util.find_spec("pyarrow") is not None


def need_pyarrow(what: str) -> None:
    """Raises TreewrightError saying what to install if pyarrow is missing."""
    if not has_pyarrow():
        raise TreewrightError(
            f"{what} needs pyarrow, which is not installed; type: pip install 'treewright[data]', or use JSON lines "
            "(--file-type jsonl)"
        )


class Table:
    """One file that takes rows; close it, or leave its `with` block, and it is complete."""

    rows = 0

    def write(self, row: Row) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class JsonlTable(Table):
    """One JSON object a line, UTF-8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="\n")

    def write(self, row: Row) -> None:
        try:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError as error:
            raise TreewrightError(
                f"row {self.rows + 1} of {self.path.name} (tree {row.get('tree_id')}) holds a number that JSON lacks: "
                f"{error}; parquet can hold it: --file-type parquet"
            ) from None
        self._file.write(line + "\n")
        self.rows += 1

    def close(self) -> None:
        self._file.close()


class ParquetTable(Table):
    """Parquet with zstd; rows are written in groups, so that memory stays small.

    shape  types by column; None: they are read off the first group
    """

    def __init__(self, path: Path, shape: Mapping[str, Any] | None) -> None:
        need_pyarrow("writing parquet")
        self.path = path
        self.schema: Any = None if shape is None else arrow_schema(dict(shape))
        self._writer: Any = None
        self._waiting: list[Row] = []
        self._bytes = 0
        self._known: set[str] | None = None  # the columns, where they were read off rows

    def write(self, row: Row) -> None:
        if self._known is not None and (extra := row.keys() - self._known):
            raise self._misfit(f"row {self.rows + 1} has a column {min(extra)!r} that the first rows lack")
        self._waiting.append(row)
        self._bytes += _size(row)
        self.rows += 1
        if len(self._waiting) >= GROUP or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._waiting and self.schema is None:
            self.schema = self._read_off(self._waiting)
        rows, self._waiting, self._bytes = self._waiting, [], 0
        try:
            if self._writer is None and self.schema is not None:
                self._writer = pq.ParquetWriter(self.path, self.schema, compression="zstd")
            if rows:
                self._writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        except (pa.ArrowException, OverflowError) as error:  # objects without keys, numbers beyond 64 bits
            raise self._misfit(str(error)) from error

    def _read_off(self, rows: list[Row]) -> Any:
        """The columns of rows whose types nobody told, every row's keys among them."""
        import pyarrow as pa

        names = dict.fromkeys(name for row in rows for name in row)
        fields = []
        for name in names:
            try:
                fields.append(pa.field(name, pa.array([row.get(name) for row in rows]).type))
            except (pa.ArrowException, OverflowError) as error:
                raise self._misfit(f"column {name!r}: {error}") from error
        self._known = set(names)
        return pa.schema(fields)

    def _misfit(self, why: str) -> TreewrightError:
        return TreewrightError(
            f"{self.path.parent.name}: the rows do not fit one table: {why}; write JSON lines: --file-type jsonl "
            "(a function of your own can have an attribute `columns` with a type for each)"
        )

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()


def _size(row: Row) -> int:
    """A rough number of bytes in memory: what lists hold weighs most."""
    lists = (value for value in row.values() if isinstance(value, list) and value)
    return sum(len(value) * (512 if isinstance(value[0], dict) else 8) for value in lists)


def open_table(path: Path, shape: Mapping[str, Any] | None, file_type: str) -> Table:
    """A new table at `path`, its folder made. Raises TreewrightError for an unknown type or without pyarrow."""
    if file_type not in FILE_TYPES:
        raise TreewrightError(f"no file type named {file_type!r}; known: {', '.join(FILE_TYPES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return JsonlTable(path) if file_type == "jsonl" else ParquetTable(path, shape)


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, row or BadLine) of every row of a parquet or JSON lines file; blank lines are passed over.

    Raises TreewrightError for a file that cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        yield from json_lines(path)
    except (OSError, UnicodeError) as error:
        raise TreewrightError(f"{path} cannot be read: {error}; name a file of JSON lines in UTF-8") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    need_pyarrow(f"reading {path}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            readers = {field.name: _reader(field, field.name in TALK) for field in file.schema_arrow}
            number = 0
            for group in range(file.num_row_groups):
                for batch in file.read_row_group(group).to_batches(max_chunksize=64):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, _read(row, readers)
    except (pa.ArrowException, OSError) as error:
        raise TreewrightError(
            f"{path}: not a readable parquet file: {error}; write it again, or name another"
        ) from None


TALK = ("messages", "tools")
Reader = Callable[[Any], Any] | None


def _read(row: Row, readers: Mapping[str, Reader]) -> Any:
    try:
        return {name: value if (read := readers[name]) is None else read(value) for name, value in row.items()}
    except ValueError as error:
        return BadLine(f"not JSON: {error}")


def _reader(field: Any, sparse: bool) -> Reader:
    """What makes JSON of a column's values; None where they are JSON already.

    `datasets` writes objects of different shapes as JSON text of the type arrow.json. Where it writes a struct,
    a missing key is a null: `sparse` marks such objects.
    """
    import pyarrow as pa

    kind = field.type
    if b"arrow.json" in (getattr(kind, "extension_name", "").encode(), (field.metadata or {}).get(EXTENSION)):
        return lambda value: None if value is None else json_value(value)
    if pa.types.is_struct(kind):
        return _objects({inner.name: _reader(inner, sparse) for inner in kind}, sparse)
    if pa.types.is_map(kind):
        read = _reader(kind.item_field, sparse)
        return lambda value: None if value is None else {k: read(v) if read else v for k, v in value}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        read = _reader(kind.value_field, sparse)
        return read and (lambda value: None if value is None else [read(v) for v in value])
    return None


def _objects(readers: Mapping[str, Reader], sparse: bool) -> Reader:
    if not sparse and not any(readers.values()):
        return None
    made: type[dict[str, Any]] = Sparse if sparse else dict

    def read(value: Any) -> Any:
        if value is None:
            return None
        return made({k: v if (inner := readers[k]) is None else inner(v) for k, v in value.items()})

    return read
