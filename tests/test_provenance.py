"""What a result says of the software that made it."""

from importlib import metadata

import pytest

import cnn_gp
from cnn_gp import provenance


@pytest.fixture
def anew():
    """Nothing is kept from call to call."""
    provenance.software.cache_clear()
    yield
    provenance.software.cache_clear()


def test_the_packages_version_is_that_of_the_code_that_runs(anew, monkeypatch):
    """Not that of an older installation: a checkout comes before it on the path."""
    monkeypatch.setattr(metadata, "version", lambda package: "0.0.1")
    found = provenance.software()
    assert found["cnn_gp"] == cnn_gp.__version__ != "0.0.1"
    assert found["numpy"] == "0.0.1"


def test_a_package_that_is_missing_is_named_so(anew, monkeypatch):
    def fails(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", fails)
    assert provenance.software()["numba"] == "not installed"
