"""Tables of Apache Arrow: parquet files and what `datasets` saves to disk. Texts are read by group, images by row.

A group is what a file is cut into (parquet's row groups, Arrow's record batches); one group of the image column is held
in memory while its rows are read in their order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.sources.samples import encodable, is_inside

MAX_GROUP_BYTES = 4 << 30  # of a row group, which is held in memory; 100 rows as `datasets` writes them have 100 MB


class TableFile:
    """An opened file of rows."""

    def __init__(self, path: str) -> None:
        """Open it; nothing but its schema is read.

        Raises:
            UserError: It is no whole file of its kind, holds too large a group, or pyarrow is not installed.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise UserError(f"{path}: needs the package pyarrow; pip install it") from None
        self.path = path
        self._parquet: Any = None
        self._batches: list[Any] = []
        try:
            if path.endswith(".parquet"):
                self._parquet = pq.ParquetFile(path, memory_map=True)
                self.schema = self._parquet.schema_arrow
            else:
                table = _open_arrow(pa, path)
                self._batches, self.schema = table.to_batches(), table.schema
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: of a name that no file can have
            raise UserError(f"{path}: not a whole file of Arrow's ({first_lines(error, 1)})") from None
        largest = max((self._group_bytes(group) for group in range(self.num_groups)), default=0)
        if self._parquet and largest > MAX_GROUP_BYTES:
            raise UserError(f"{path}: a row group of {largest} bytes; write it again with row_group_size=100")

    @property
    def num_groups(self) -> int:
        """Return the number of groups."""
        return self._parquet.num_row_groups if self._parquet else len(self._batches)

    def num_rows(self, group: int) -> int:
        """Return the number of rows of a group."""
        return self._parquet.metadata.row_group(group).num_rows if self._parquet else self._batches[group].num_rows

    @property
    def text_columns(self) -> list[str]:
        """Return the columns of texts or lists of texts."""
        kinds = pa_types()
        found = []
        for field in self.schema:
            listed = kinds.is_list(field.type) or kinds.is_large_list(field.type)
            inner = field.type.value_type if listed else field.type
            if kinds.is_string(inner) or kinds.is_large_string(inner):
                found.append(field.name)
        return found

    @property
    def image_columns(self) -> dict[str, list[str]]:
        """Return the columns that may hold image files, and their fields: of bytes none, of structs with bytes all."""
        kinds = pa_types()
        found: dict[str, list[str]] = {}
        for field in self.schema:
            if kinds.is_binary(field.type) or kinds.is_large_binary(field.type):
                found[field.name] = []
            elif kinds.is_struct(field.type) and "bytes" in (inner := [each.name for each in field.type]):
                found[field.name] = inner
        return found

    @property
    def class_columns(self) -> dict[str, list[str]]:
        """Return the columns of class labels, and the names of the classes, as `datasets` wrote them there."""
        try:
            features = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"].items()
            labels = {name: each["names"] for name, each in features if each.get("_type") == "ClassLabel"}
        except (TypeError, KeyError, ValueError, AttributeError):
            return {}
        return {name: list(map(str, names)) for name, names in labels.items() if name in self.schema.names}

    def read(self, group: int, columns: Sequence[str]) -> dict[str, Any]:
        """Read columns of a group, `a.b` for a field of a struct: {column: array}.

        Raises:
            ValueError: The file is broken there.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            if self._parquet:
                table = self._parquet.read_row_group(group, columns=list(columns), use_threads=False)
            else:
                table = pa.Table.from_batches([self._batches[group]])
            found = {}
            for column in columns:
                name, *fields = column.split(".") if column not in table.schema.names else [column]
                array = table.column(name)
                if not self._parquet:
                    array.validate(full=True)  # mapped as it is: broken offsets would lead out of the file
                found[column] = pc.struct_field(array, fields) if fields else array
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.path}: broken in group {group} ({first_lines(error, 1)})") from None
        return found

    def rows(self, group: int) -> list[dict[str, Any]]:
        """Read all columns of a group: a dictionary a row."""
        columns = self.schema.names
        found = {name: array.to_pylist() for name, array in self.read(group, columns).items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*found.values(), strict=True)]

    def _group_bytes(self, group: int) -> int:
        return self._parquet.metadata.row_group(group).total_byte_size if self._parquet else 0


def pa_types() -> Any:
    """Return pyarrow's questions about types."""
    import pyarrow.types

    return pyarrow.types


def _open_arrow(pa: Any, path: str) -> Any:
    """Map a file of record batches into memory: a stream, as `datasets` writes, or a file of random access."""
    source = pa.memory_map(path)
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


open_table = lru_cache(maxsize=4)(TableFile)


@lru_cache(maxsize=1)
def _images(path: str, group: int, column: str) -> Any:
    return open_table(path).read(group, [column])[column]


@dataclass(frozen=True, slots=True)
class RowImage:
    """An image inside a table: bytes, or a struct of `bytes` and `path` as `datasets` has it."""

    path: str  # of the table
    group: int
    row: int  # in the group
    column: str
    file: str = ""  # what the row calls it

    @property
    def name(self) -> str:
        """Last part of the name that the row gives it."""
        return os.path.basename(self.file)

    @property
    def where(self) -> str:
        """How messages name it."""
        return encodable(f"{self.path}: row {self.row} of group {self.group}")

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.read())

    def read(self) -> bytes:
        """Return the bytes of the image file, from the row or from the file below the table's folder that it names.

        Raises:
            ValueError: The row has neither.
        """
        found = _images(self.path, self.group, self.column)[self.row].as_py()
        if isinstance(found, dict):
            name = found.get("path")
            found = found.get("bytes")
            folder = os.path.dirname(self.path)
            if found is None and isinstance(name, str) and is_inside(folder, name):
                return Path(folder, name).read_bytes()
        if not isinstance(found, bytes):
            raise ValueError("no image in its row")
        return found

    def stamp(self) -> list[Any]:
        """Return the place in the table, and the table's size and time of change."""
        status = os.stat(self.path)
        return [self.path, self.group, self.row, self.column, status.st_size, status.st_mtime_ns]
