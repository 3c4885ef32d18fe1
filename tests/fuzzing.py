"""What the two fuzz tests share: how many cases of what, drawn and counted."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings

CASES = {
    "configs": 700,
    "networks on odd image sizes": 60,
    "forward passes": 12,
    "command lines": 250,
    "bytes as images": 400,
    "damaged images": 500,
    "images of odd sizes": 250,
    "image folders": 60,
    "weight files": 200,
    "workdirs": 150,
}
COUNTED = dict.fromkeys(CASES, 0)


def fuzz(kind, *strategies, **named):
    """A test over `CASES[kind]` drawn examples, which are counted."""

    def wrap(test):
        @settings(
            max_examples=CASES[kind],
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(*strategies, **named)
        @functools.wraps(test)
        def counted(*args, **kwargs):
            COUNTED[kind] += 1
            test(*args, **kwargs)

        return counted

    return wrap


@pytest.fixture(scope="session")
def counted_cases(request):
    """Prints how many cases ran."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        rows = ", ".join(f"{count} {kind}" for kind, count in COUNTED.items() if count)
        print(f"\nfuzz: {sum(COUNTED.values())} cases: {rows}")
