"""The training loop, checkpoints, epochs, streamed data and image transforms; no module here knows a method."""
