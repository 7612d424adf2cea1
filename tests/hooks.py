"""Hooks of schemathesis: it knows a later Unicode than Python may, and makes ids of those letters."""

from __future__ import annotations

import importlib
import unicodedata
from typing import Any


def is_known(values: Any) -> bool:
    """Tell whether all characters of the parameters are assigned, as far as this Python knows."""
    texts = [value for value in values.values() if isinstance(value, str)] if isinstance(values, dict) else []
    return not any(unicodedata.category(character) == "Cn" for text in texts for character in text)


def filter_query(context: Any, query: Any) -> bool:
    return is_known(query)


def filter_body(context: Any, body: Any) -> bool:
    return is_known(body)


for hook in (filter_query, filter_body):
    importlib.import_module("schemathesis").hook(hook)
