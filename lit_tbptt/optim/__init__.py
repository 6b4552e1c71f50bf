"""Learning-rate schedules that torch.optim does not have."""

from lit_tbptt.optim.warmup_cosine import WarmupCosineLR

__all__ = ["WarmupCosineLR"]
