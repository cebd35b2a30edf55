"""How well a model does the last step of a problem in its head: what KaVa asks of its teacher, whose trace leaves that step out."""

from collections.abc import Sequence

import torch

from kava.data.collate import left_padded
from kava.data.sequences import EncodedExample
from kava.model.backbone import Backbone


@torch.no_grad()
def in_head_accuracy(
    backbone: Backbone, examples: Sequence[EncodedExample], prompt_length: int, pad_id: int, batch_size: int = 100
) -> float:
    """Share of examples whose answer is predicted from the question, the trace without its last step, and the answer's fixed text.

    Args:
        backbone: the language model.
        examples: with answers whose first token tells them apart, as the mini experiment's.
        prompt_length: tokens of the answer's fixed text.
        pad_id: fills the gaps on the left.
        batch_size: examples at a time.
    """
    device, right = backbone.special_ids.device, 0
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        ids, mask = left_padded([e.question + e.cot(drop_last_step=True) + e.answer[:prompt_length] for e in batch], pad_id)
        answers = torch.tensor([e.answer[prompt_length] for e in batch], device=device)
        last = backbone.read(ids.to(device), mask.to(device)).hidden[:, -1]
        right += int((backbone.logits(last).argmax(-1) == answers).sum())
    return right / len(examples)
