"""Models on a mesh: load, place, adapt, score. Read `mesh`, `load`, `lora`, `logprobs`."""
