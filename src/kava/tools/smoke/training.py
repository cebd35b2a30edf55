"""Checks of training, generation, saving and loading, through the functions that the commands call."""

import json

import torch

from kava.checkpoint import load_checkpoint, save_checkpoint
from kava.runtime.atomic import verify
from kava.tools.smoke.lab import CheckFailedError, Lab

STEPS = 10
NEW_TOKENS = 8


def training(lab: Lab) -> str:
    """Train on a few problems; check that the loss falls and that the checkpoint is complete."""
    from kava.train.train import train

    overrides = {
        "training.max_steps": STEPS, "training.batch_size": 8, "dataset.max_train_samples": 8, "training.learning_rate": 1e-2,
        "training.warmup_ratio": 0.0, "training.lr_scheduler": "constant", "training.logging_steps": 1, "training.eval_steps": STEPS,
        "training.save_steps": STEPS, "evaluation.validation_samples": 4, "evaluation.max_new_tokens": NEW_TOKENS,
    }  # fmt: skip
    run = lab.directory / "run"
    outcome = train(lab.config(overrides), run, name="smoke", quiet=True)
    problem = verify(run / "best_checkpoint")
    if outcome.exit_code or outcome.steps != STEPS or problem:
        raise CheckFailedError(f"{outcome.steps} of {STEPS} steps, exit code {outcome.exit_code}, checkpoint: {problem or 'whole'}")
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    if not losses[-1] < 0.95 * losses[0]:
        raise CheckFailedError(f"the loss does not fall: {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps")
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps of 8 problems; best_checkpoint is whole"


def generation(lab: Lab) -> str:
    """Compare latent answers in a batch with those of each question alone, and decoding with a KV cache with decoding without one."""
    from kava.tools.bench.decoding import decode_incremental, decode_recomputed

    reasoner = lab.trained.reasoner()
    questions = [problem.question for problem in lab.problems]
    together = reasoner.generate(questions, max_new_tokens=NEW_TOKENS)
    alone = [reasoner.generate([question], max_new_tokens=NEW_TOKENS)[0] for question in questions]
    if [g.token_ids for g in together] != [g.token_ids for g in alone]:
        raise CheckFailedError("a batch of questions gets other answers than each question alone")
    recomputed = decode_recomputed(reasoner, questions, NEW_TOKENS)
    for cached, plain in zip(decode_incremental(reasoner, questions, NEW_TOKENS), recomputed, strict=True):
        if plain[: len(cached)] != cached:
            raise CheckFailedError("cached decoding writes other tokens than recomputed decoding")
    tokens = sum(g.generated_tokens for g in together)
    return f"{len(questions)} answers, {tokens} tokens, {together[0].forward_passes} forward passes; batch = alone, cached = recomputed"


def save_and_load(lab: Lab) -> str:
    """Check that a saved and reloaded model gives bit for bit the same logits after the latents and the answer prompt."""
    saved = lab.directory / "saved"
    save_checkpoint(saved, lab.trained)
    logits = []
    for trained in (lab.trained, load_checkpoint(saved)):
        questions = [trained.builder.question_ids(problem.question) for problem in lab.problems]
        with torch.inference_mode():
            logits.append(trained.reasoner().start(questions)[1])
    mine, theirs = logits
    different = int((mine != theirs).sum())
    if different or not torch.isfinite(mine).all():
        raise CheckFailedError(f"{different} of {mine.numel()} logits changed, by at most {float((mine - theirs).abs().max()):.1e}")
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    return f"{mine.numel()} logits the same bit for bit; {size / 1024:.0f} KiB on disk"
