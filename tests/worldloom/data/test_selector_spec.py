import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.data.selector_spec import SelectorSpec, parse_selector
from worldloom.data.selectors import Mixture, Prioritised, Recency, Uniform


def test_selectors_are_read_as_people_write_them():
    assert parse_selector("agent") == SelectorSpec()
    assert (parse_selector("uniform").online, parse_selector("online").online) == (False, True)
    assert isinstance(parse_selector("uniform").build(10), Uniform)
    assert isinstance(parse_selector("prioritised:0.4").build(10), Prioritised)
    assert isinstance(parse_selector("online+recency").build(10), Recency)
    mixed = parse_selector("online + 0.25*uniform + 0.75*prioritised")
    assert mixed.parts == (("uniform", 0.0, 0.25), ("prioritised", 0.6, 0.75))
    assert mixed.uses_priorities
    assert isinstance(mixed.build(10), Mixture)


def test_a_built_mixture_draws_what_its_parts_draw():
    selector = parse_selector("0.5*uniform+0.5*recency:50").build(100)
    selector.add(np.arange(50))
    draws = selector.sample([(4000, np.random.default_rng(0))], origin=0)
    assert 0.45 < np.mean(draws == 49) < 0.6, "a strong preference for the newest, half of the time"
    assert len(np.unique(draws)) == 50


@pytest.mark.parametrize(
    "text",
    [
        "newest",
        "uniform:2",
        "0.5*uniform",
        "prioritised:x",
        "recency:-1",
        "2*uniform+-1*recency",
        "",
    ],
)
def test_what_cannot_be_read_is_named(text):
    with pytest.raises(ConfigurationError, match=r"replay\.selector"):
        parse_selector(text)
