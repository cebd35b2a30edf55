"""Accuracy of a model that does not write the last step of a problem: KaVa's teacher needs this, as its trace leaves that step out."""

from collections.abc import Sequence

import torch

from kava.data.collate import left_padded
from kava.data.sequences import EncodedExample
from kava.model.backbone import Backbone


@torch.no_grad()
def unwritten_step_accuracy(
    backbone: Backbone, examples: Sequence[EncodedExample], prompt_length: int, pad_id: int, batch_size: int = 100
) -> float:
    """Share of answers predicted correctly from the question, the trace without its last step, and the answer's fixed text.

    Args:
        backbone: the language model.
        examples: examples whose answers differ in their first token, as in the mini experiment.
        prompt_length: number of tokens in the answer's fixed text.
        pad_id: padding token, added on the left.
        batch_size: examples per forward pass.
    """
    device, right = backbone.special_ids.device, 0
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        ids, mask = left_padded([e.question + e.cot(drop_last_step=True) + e.answer[:prompt_length] for e in batch], pad_id)
        answers = torch.tensor([e.answer[prompt_length] for e in batch], device=device)
        last = backbone.read(ids.to(device), mask.to(device)).hidden[:, -1]
        right += int((backbone.logits(last).argmax(-1) == answers).sum())
    return right / len(examples)
