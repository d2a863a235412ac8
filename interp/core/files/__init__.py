"""The files that users bring, each kind read in one place and strictly: text, rows of CSV, JSON."""

from __future__ import annotations

from .csv_rows import Row, number, read_csv, unguarded, whole_number
from .json_text import parse_json_text
from .text import check_text, decode, open_regular, read_beginning, read_bytes, read_text

__all__ = [
    "Row",
    "check_text",
    "decode",
    "number",
    "open_regular",
    "parse_json_text",
    "read_beginning",
    "read_bytes",
    "read_csv",
    "read_text",
    "unguarded",
    "whole_number",
]
