"""What torch.optim lacks."""

from lit_tbptt.optim.warmup_cosine import WarmupCosineLR

__all__ = ["WarmupCosineLR"]
