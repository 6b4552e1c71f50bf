"""What torch.optim does not have: a second-order optimizer, a learning-rate schedule, ridge regression for readouts."""

from lit_tbptt.optim.hessian_free import HessianFree
from lit_tbptt.optim.ridge import RidgeReadout
from lit_tbptt.optim.warmup_cosine import WarmupCosineLR

__all__ = ["HessianFree", "RidgeReadout", "WarmupCosineLR"]
