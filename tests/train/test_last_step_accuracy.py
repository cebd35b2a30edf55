"""The last step in the head: counted on what the model is shown, padding and batches aside."""

import torch

from helpers.tiny import PROMPT_IDS, make_examples, tiny_model
from kava.train.last_step_accuracy import unwritten_step_accuracy


@torch.no_grad()
def test_it_is_the_share_that_the_model_alone_gets_right() -> None:
    backbone, examples = tiny_model().backbone, make_examples(12, steps=(1, 2, 3))
    for number, example in enumerate(examples):
        ids = [*example.question, *[token for step in example.steps[:-1] for token in step], *PROMPT_IDS]
        predicted = int(backbone.causal_lm(torch.tensor([ids])).logits[0, -1].argmax())
        example.answer[len(PROMPT_IDS)] = predicted if number % 3 == 0 else predicted + 1
    for batch_size in (1, 5, 100):
        assert unwritten_step_accuracy(backbone, examples, len(PROMPT_IDS), 0, batch_size) == 4 / 12
