"""Who was given which arm of an experiment, what came of it, and what that says about the arms."""
