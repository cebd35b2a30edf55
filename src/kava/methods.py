"""The methods as one table: a row says which passes a method trains, how it thinks, and what it writes at inference."""

from dataclasses import dataclass, field
from typing import Any, Literal

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
        step_decoder: decode the step that each latent stands for (`L_STEP`), in training only.
        writes_cot: train and infer with the whole trace written out.
        curriculum: how the written trace of the student's own sequence shrinks, stage by stage.
        uses_projection: latent inputs go through the projection (`loss.use_projection` may still turn it off).
        published: default `training` options, as in the authors' code for GSM8K; a configuration may set others.
    """

    name: str
    latents: LatentMode = "none"
    teacher: bool = False
    codi: bool = False
    kv: bool = False
    step_decoder: bool = False
    writes_cot: bool = False
    curriculum: Curriculum = "none"
    uses_projection: bool = False
    published: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_latents(self) -> bool:
        """Whether the student has latent tokens at all."""
        return self.latents != "none"


_TABLE = (
    # The upper bound: supervised fine-tuning on the whole written trace, which is also written at inference.
    Method("full_cot", writes_cot=True),
    # The lower bound: question, then answer.
    Method("no_cot"),
    # arXiv 2405.14838: the written trace loses its leading tokens stage by stage, until none is left.
    Method(
        "icot",
        curriculum="remove_tokens",
        published={
            "tokens_per_stage": 1,
            "epochs_per_stage": 0.125,
            "remove_all_beyond": 38,
            "removal_smoothing": 4.0,
            "reset_optimizer": True,
        },
    ),
    # arXiv 2412.06769: stage by stage, the leading steps give way to sequential latents that are fed back as they are.
    Method(
        "coconut",
        latents="sequential",
        curriculum="replace_steps",
        published={"epochs_per_stage": 3.0, "trailing_stage": True, "reset_optimizer": True},
    ),
    # arXiv 2502.21074: sequential latents, taught through the hidden state at the distillation token.
    Method("codi", latents="sequential", teacher=True, codi=True, uses_projection=True),
    # arXiv 2509.20317: as CODI, and the latents are decoded back into the steps that they stand for.
    Method("simcot", latents="sequential", teacher=True, codi=True, step_decoder=True, uses_projection=True),
    # arXiv 2506.18582: as CODI, with M latents in T parallel Jacobi iterations.
    Method("pccot", latents="parallel", teacher=True, codi=True, uses_projection=True),
    # arXiv 2510.02312: as PCCoT, and the latents' keys and values follow the teacher's compressed KV cache.
    Method("kava", latents="parallel", teacher=True, codi=True, kv=True, uses_projection=True),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}

_WITH_LATENTS = [method.name for method in reversed(_TABLE) if method.uses_latents]
WITH_LATENTS = f"{', '.join(_WITH_LATENTS[:-1])} or {_WITH_LATENTS[-1]}"
"""The methods that reason in latents, for messages."""

EVICTIONS = ("rkv", "rkv_original", "cosine", "attention", "crop", "uniform", "random")
"""Methods to select entries of the teacher's cache: each is a scorer in `kava.eviction`, in the file of the same name."""

WINDOW = 8
"""Number of last trace entries that attend to the others in `rkv_original`; they are always kept."""
