"""What happens inside one training run: modules, losses, optimiser, callbacks, resume."""
