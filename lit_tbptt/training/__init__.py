"""The loop on Lightning: modules, data modules, evaluation, resumes, callbacks."""
