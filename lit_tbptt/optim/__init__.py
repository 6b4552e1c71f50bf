"""What torch.optim does not have: a learning-rate schedule, and ridge regression for readouts."""

from lit_tbptt.optim.ridge import RidgeReadout
from lit_tbptt.optim.warmup_cosine import WarmupCosineLR

__all__ = ["RidgeReadout", "WarmupCosineLR"]
