"""The library under the stages: flat modules, imports only downwards (the contract stands in pyproject.toml)."""
