"""What to optimize with: plain data, checked, without torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of the configurations: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


# TOML and JSON have lists where these have tuples; what is in them stays strict.
Patterns = Annotated[tuple[str, ...], Field(strict=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], Field(strict=False)]


class MuonConfig(Section):
    """Muon: momentum, made orthogonal by Newton-Schulz iterations; for `kind = "muon"`."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the matrices; none: the same as lr (fits scale = "match_rms_adamw")."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay of the matrices; none: the same as weight_decay."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of gradients."""
    nesterov: bool = True
    """Whether to orthogonalize the mean mixed with the newest gradient, not the mean itself."""
    iterations: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations; each is three matrix products."""
    coefficients: Literal["jordan", "polar_express"] = "jordan"
    """Polynomials of the iterations: the same one each time, or those of the Polar Express."""
    scale: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """Factor on the learning rate of a [rows, columns] matrix: sqrt(max(1, rows / columns)), or
    0.2 sqrt(max(rows, columns)), which gives updates of AdamW's usual size."""
    eps: float = Field(default=1e-7, gt=0)
    """Least Frobenius norm to divide by."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What to iterate in; auto: bfloat16 on CUDA, else float32. float64 weights keep float64."""
    exclude: Patterns = ()
    """Name patterns of further matrices that AdamW updates."""


class OptimConfig(Section):
    """Optimizer, rates and clipping. Patterns are those of `fnmatch`; `*` also matches dots."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the hidden matrices and adamw for the rest."""
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate, before the schedule's factor."""
    betas: Betas = (0.9, 0.95)
    """AdamW: decay of the running means of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW: added to the square root of the mean square."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay; never of 1-D parameters."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest 2-norm of the gradient of all parameters together; none: not clipped."""
    embedding_lr: float | None = Field(default=None, gt=0)
    """Learning rate of embeddings; none: lr. A tied head counts as the embedding."""
    head_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the output layer; none: lr."""
    embedding_patterns: Patterns = ("embed.weight", "*embed_tokens.weight", "*wte.weight")
    """Names of embeddings; AdamW updates them."""
    head_patterns: Patterns = ("head.weight", "*lm_head.weight")
    """Names of output layers; AdamW updates them."""
    no_decay_patterns: Patterns = ("*.bias",)
    """Names of further parameters without weight decay."""
    muon: MuonConfig = MuonConfig()
    """Settings of Muon."""


class KernelConfig(Section):
    """How to make the training path of a model faster; see `accelerate`."""

    compile: bool = False
    """Whether to compile forward and backward with torch.compile; takes 10 to 60 seconds at the
    first step, less when its cache knows the model."""
    matmul: Literal["auto", "torch", "onednn"] = "auto"
    """What multiplies float32 matrices of linear layers on CPU; auto: oneDNN where the processor
    has AVX-512, else torch's choice."""
    keep_memory: bool = True
    """Whether the process keeps memory that a step frees for the next one, instead of handing it
    back to the system (Linux with glibc; elsewhere it makes no difference)."""
