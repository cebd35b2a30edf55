"""`--quick_test`: small limits, except where the user gave a value."""

from kava.config import Config, build_config
from kava.config.differences import differences
from kava.config.quick_test import is_quick_test, quick_test


def test_the_limits_are_small_and_what_was_asked_for_stays() -> None:
    asked = {"training.max_steps": 12, "training.learning_rate": 0.1}
    config = build_config({}, "a test", asked)
    small = quick_test(config, asked)
    assert (small.training.max_steps, small.training.learning_rate) == (12, 0.1)
    assert (small.training.batch_size, small.dataset.max_train_samples) == (4, 256)
    assert not {"method", "model.name", "latent.num_tokens"} & differences([config.to_dict(), small.to_dict()]).keys()


def test_what_was_asked_for_in_a_mapping_stays_too() -> None:
    asked = {"training": {"max_steps": 500}}
    small = quick_test(build_config({}, "a test", asked), asked)
    assert (small.training.max_steps, small.training.batch_size) == (500, 4)


def test_a_quick_test_is_recognised_by_its_limits() -> None:
    assert is_quick_test(quick_test(Config(), {}).to_dict())
    assert not is_quick_test(Config().to_dict())
    assert not is_quick_test({"training": None, "dataset": 3})
