"""What the fuzz tests share: how many cases of what; each case is counted when it has run."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings

# The least number of cases that each test runs; hypothesis stops early where there are no more.
CASES = {
    "configs": 600,
    "networks on odd image sizes": 60,
    "forward passes": 5,
    "command lines": 250,
    "bytes as images": 400,
    "damaged images": 500,
    "images of odd sizes": 250,
    "image folders": 60,
    "files to classify": 150,
    "weight files": 200,
    "workdirs": 150,
}
COUNTED = dict.fromkeys(CASES, 0)


def fuzz(kind, *strategies, **named):
    """A test over `CASES[kind]` drawn examples; those that run to their end are counted."""

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
            test(*args, **kwargs)
            COUNTED[kind] += 1

        counted.kind = kind
        return counted

    return wrap


@pytest.fixture
def counted_cases(request):
    """Fails a test that ran fewer cases than it promises."""
    yield
    kind = getattr(request.function, "kind", None)
    assert kind is None or COUNTED[kind] >= CASES[kind]


def summary(counted):
    """One line for the end of a test run."""
    rows = ", ".join(f"{number} {kind}" for kind, number in counted.items() if number)
    return f"fuzz: {sum(counted.values()):,} cases ran: {rows}"
