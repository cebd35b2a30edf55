"""What an explanation says in words."""

from kava.explain.record import StepResults


def test_the_latent_that_stands_out_is_named() -> None:
    found = StepResults(steps=2, questions=40, held=[[0.9, 1.0, 0.2], [0.3, 0.1, 0.25]], by_chance=[[0.2, 0.85, 0.2], [0.3, 0.1, 0.1]])
    assert found.in_words() == (
        "40 questions of 2 steps: result 1 stands in latent 0 for 90 % (20 % by chance),"
        " result 2 stands in latent 2 for 25 % (10 % by chance)"
    )
