import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_node.http.figures import PERIOD, Latencies, bucket_middle, bucket_of, quantiles


@given(st.floats(min_value=1e-6, max_value=3600))
def test_a_bucket_is_at_most_four_percent_off(seconds):
    assert bucket_middle(bucket_of(seconds)) == pytest.approx(seconds, rel=0.04)


@given(st.lists(st.floats(min_value=1e-6, max_value=60), min_size=1, max_size=200))
def test_quantiles_are_those_of_the_sorted_values(values):
    histogram: dict[int, int] = {}
    for value in values:
        histogram[bucket_of(value)] = histogram.get(bucket_of(value), 0) + 1
    p50, p99 = quantiles(histogram, (0.5, 0.99))
    ordered = sorted(values)
    assert p50 == pytest.approx(ordered[max(0, -(-len(values) * 50 // 100) - 1)], rel=0.04)
    assert p99 == pytest.approx(ordered[max(0, -(-len(values) * 99 // 100) - 1)], rel=0.04)


def test_no_requests_have_no_latency():
    assert quantiles({}, (0.5, 0.99)) == (0.0, 0.0)


def test_figures_are_of_the_last_whole_period_with_requests():
    latencies = Latencies(100.0)
    for _ in range(50):
        latencies.add(101.0, 0.010)
    rate, p50, _ = latencies.read(100.0 + PERIOD)
    assert (rate, p50) == (50 / PERIOD, pytest.approx(0.010, rel=0.04))
    latencies.add(100.0 + PERIOD + 1, 0.5)
    rate, p50, _ = latencies.read(100.0 + PERIOD + 2)
    assert (rate, p50) == (50 / PERIOD, pytest.approx(0.010, rel=0.04))


def test_a_young_period_counts_until_there_is_a_whole_one():
    latencies = Latencies(100.0)
    latencies.add(100.5, 0.25)
    rate, p50, p99 = latencies.read(102.0)
    assert rate == 0.5
    assert p50 == p99 == pytest.approx(0.25, rel=0.04)


def test_silence_brings_the_rate_to_zero_and_keeps_the_latency():
    latencies = Latencies(100.0)
    latencies.add(101.0, 0.25)
    rate, p50, _ = latencies.read(100.0 + 10 * PERIOD)
    assert (rate, p50) == (0.0, pytest.approx(0.25, rel=0.04))
    latencies.add(100.0 + 10 * PERIOD, 0.1)
    assert latencies.read(100.0 + 10 * PERIOD + 1)[0] == 0.0
