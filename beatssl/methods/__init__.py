"""Pretraining methods. Each is a module with the same two verbs:
`training_step(batch, generator) -> losses` and `encode(signals) -> (batch, channels, steps)`."""
