"""What a method is: which passes it trains, how it thinks, and what it writes at inference (method.md, section 7)."""

from dataclasses import dataclass
from typing import Literal

LatentMode = Literal["none", "parallel", "sequential"]
Curriculum = Literal["none", "remove_tokens", "replace_steps"]


@dataclass(frozen=True)
class Method:
    """One point of the method space. Everything else (data, trainer, evaluation) is shared.

    Attributes:
        name: as in the configuration's `method`.
        latents: no latent tokens, M in T parallel Jacobi iterations, or M one after the other.
        teacher: also train on the written trace (`CE_teacher`), with the same weights.
        codi: match hidden states at the distillation token (`L_CODI`).
        kv: match the student's latent KV cache to the compressed teacher's (`L_KV`).
        writes_cot: train and infer with the whole trace written out.
        curriculum: how the written trace of the student's own sequence shrinks, stage by stage.
        uses_projection: latent inputs go through the projection (`loss.use_projection` may still turn it off).
    """

    name: str
    latents: LatentMode = "none"
    teacher: bool = False
    codi: bool = False
    kv: bool = False
    writes_cot: bool = False
    curriculum: Curriculum = "none"
    uses_projection: bool = False

    @property
    def thinks(self) -> bool:
        """Whether the student has latent tokens at all."""
        return self.latents != "none"
