"""Training infrastructure, independent of the methods: loop, checkpoints, epochs, streamed data, image transforms."""
