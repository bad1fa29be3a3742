"""Engines that fail are ejected, looked for when their pause is over, and readmitted one request at a time."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway.balancing import Balancer, Engine, Patience, State

URLS = ["http://a", "http://b", "http://c", "http://d"]
PATIENCE = Patience(failures=3, seconds=2.0, max_seconds=10.0, max_ejected_percent=50)


@pytest.fixture
def balancer() -> Balancer:
    return Balancer(PATIENCE)


def chosen(balancer: Balancer, urls: Sequence[str] = URLS, requests: int = 100) -> set[str]:
    engines = [balancer.choose(urls) for _ in range(requests)]
    return {engine.url for engine in engines if engine}


def test_an_engine_that_cannot_be_reached_is_ejected_at_once(balancer: Balancer) -> None:
    assert balancer.failed(balancer.engine("http://a"), URLS, 0.0, reached=False)
    assert chosen(balancer) == set(URLS[1:])


def test_an_engine_that_answers_badly_is_ejected_after_some_failures_in_a_row(balancer: Balancer) -> None:
    engine = balancer.engine("http://a")
    for _ in range(5):
        assert not balancer.failed(engine, URLS, 0.0)
        assert not balancer.failed(engine, URLS, 0.0)
        balancer.answered(engine)
    assert chosen(balancer) == set(URLS)
    assert [balancer.failed(engine, URLS, 0.0) for _ in range(3)] == [False, False, True]
    assert chosen(balancer) == set(URLS[1:])


def test_when_its_pause_is_over_it_is_looked_for_and_then_has_one_request_at_a_time(
    balancer: Balancer,
) -> None:
    engine = balancer.engine("http://a")
    balancer.failed(engine, URLS, 100.0, reached=False)
    assert balancer.due(URLS, 101.9) == []
    assert balancer.due(URLS, 102.0) == [engine]
    assert "http://a" not in chosen(balancer), "a pause that is over readmits nobody: a probe does"
    balancer.readmit(engine)
    assert balancer.choose(URLS) is engine
    engine.outstanding += 1
    assert "http://a" not in chosen(balancer), "its one request has not been answered yet"
    engine.outstanding -= 1
    balancer.answered(engine)
    assert engine.state is State.SERVING
    assert engine.failures == 0


def test_a_probed_engine_that_fails_once_is_ejected_again_and_for_longer(balancer: Balancer) -> None:
    engine = balancer.engine("http://a")
    pauses = []
    for _ in range(5):
        balancer.failed(engine, URLS, 0.0, reached=engine.state is State.PROBED)
        pauses.append(engine.ejected_until)
        balancer.readmit(engine)
    assert pauses == [2.0, 4.0, 8.0, 10.0, 10.0]
    balancer.answered(engine)
    balancer.failed(engine, URLS, 0.0, reached=False)
    assert engine.ejected_until == 2.0


def test_a_probe_that_fails_makes_the_pause_longer(balancer: Balancer) -> None:
    engine = balancer.engine("http://a")
    balancer.failed(engine, URLS, 0.0, reached=False)
    balancer.eject(engine, 2.0)
    assert (engine.state, engine.ejected_until) == (State.EJECTED, 6.0)


def test_not_more_than_a_share_of_the_engines_is_ejected_but_always_one(balancer: Balancer) -> None:
    ejected = [balancer.failed(balancer.engine(url), URLS, 0.0, reached=False) for url in URLS]
    assert ejected == [True, True, False, False]
    assert chosen(balancer) == set(URLS[2:])
    alone = Balancer(Patience(max_ejected_percent=0))
    assert alone.failed(alone.engine("http://a"), ["http://a"], 0.0, reached=False)


def test_ejected_engines_serve_when_there_is_no_other_and_one_answer_readmits(balancer: Balancer) -> None:
    engine = balancer.engine("http://a")
    balancer.failed(engine, ["http://a"], 0.0, reached=False)
    assert balancer.choose(["http://a"]) is engine
    assert balancer.choose(["http://a"], but_not="http://a") is None
    balancer.answered(engine)
    assert engine.state is State.SERVING


@given(st.lists(st.sampled_from(["fail", "lose", "answer", "probe", "eject"]), max_size=60))
def test_whatever_happens_an_engine_can_always_come_back(events: list[str]) -> None:
    balancer = Balancer(PATIENCE)
    engine: Engine = balancer.engine("http://a")
    now = 0.0
    for event in events:
        now += 1.0
        if event in {"fail", "lose"}:
            balancer.failed(engine, URLS, now, reached=event == "fail")
        elif event == "answer":
            balancer.answered(engine)
        elif event == "probe" and balancer.due(URLS, now):
            balancer.readmit(engine)
        elif event == "eject" and balancer.due(URLS, now):
            balancer.eject(engine, now)
        assert balancer.choose(URLS) is not None
        assert engine.ejected_until <= now + PATIENCE.max_seconds
    if engine.state is State.EJECTED:
        assert balancer.due(URLS, now + PATIENCE.max_seconds) == [engine]
        balancer.readmit(engine)
    assert "http://a" in chosen(balancer)
