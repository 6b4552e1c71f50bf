"""Optimizers and learning-rate schedules that torch.optim does not have."""

from lit_tbptt.optim.hessian_free import HessianFree
from lit_tbptt.optim.warmup_cosine import WarmupCosineLR

__all__ = ["HessianFree", "WarmupCosineLR"]
