"""Which question of each page is the newest one, remembered for a bounded number of pages."""

import random
from concurrent.futures import ThreadPoolExecutor

from kava.checkpoint import open_checkpoint
from kava.tools.playground.page import Turns, _about
from kava.tools.playground.player import Player


def test_an_older_question_is_stopped_in_whatever_order_they_arrive() -> None:
    turns = Turns(10)
    for number in (1, 3, 2):
        turns.take("a", number)
    turns.take("b", 1)
    assert [turns.is_newest("a", number) for number in (1, 2, 3)] == [False, False, True]
    assert turns.is_newest("b", 1)


def test_a_page_per_visit_takes_no_more_room_than_the_pages_remembered() -> None:
    """The pages that asked last are the ones remembered; an answer to a forgotten page goes on."""
    turns = Turns(10)
    turns.take("first", 1)
    for visit in range(500):
        turns.take(f"page {visit}", 1)
        turns.take("first", visit + 2)
        turns.take(f"page {visit}", 2)
    assert len(turns) == 10
    assert not turns.is_newest("first", 500)
    assert not turns.is_newest("page 499", 1)
    assert turns.is_newest("page 0", 1)


def test_pages_ask_at_the_same_time() -> None:
    turns = Turns(20)
    asked = [(f"page {page}", number) for page in range(100) for number in range(1, 20)]
    random.Random(0).shuffle(asked)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: turns.take(*pair), asked))
    assert len(turns) == 20


def test_an_overridden_setting_is_not_called_the_trained_one() -> None:
    """The shipped model was trained with T = 6."""
    about = _about(Player(open_checkpoint("builtin:mini", {"latent.num_iterations": 2}, "cpu"), []))
    assert about.endswith("Configured: M = 16 and T = 2.")
    assert "trained" not in about
