"""Side by side with what a user would pick instead: the same model, data, training steps, machine, and one run."""
