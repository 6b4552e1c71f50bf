"""Training on Lightning: modules, data modules, evaluation, resume, callbacks."""
