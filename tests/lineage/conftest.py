"""No test here is decided by the developer's shell."""

from tests.tracked_project import clean_environment

__all__ = ["clean_environment"]  # a fixture
