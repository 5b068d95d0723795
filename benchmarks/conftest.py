"""``--full``: the sizes of the book's page, and its table; without it, what five minutes have room for."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all sizes (an hour); writes results/benchmarks.csv")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("sizes")
    if marker:
        name, some = marker.args
        more = marker.kwargs["full"] if metafunc.config.getoption("--full") else []
        metafunc.parametrize(name, [*some, *more])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sizes(name, some, full): values of a parameter, and more of them with --full")
