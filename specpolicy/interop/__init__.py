"""Foreign checkpoints and objects: one room for each project that they come from."""
