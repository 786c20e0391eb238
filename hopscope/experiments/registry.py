"""The registry of analyses; it imports nothing, so that the shell may look into it at once."""

from __future__ import annotations

from typing import Any

REGISTERED: dict[str, Any] = {}
"""The analyses (`Analysis`) of the modules that are imported, by name."""
