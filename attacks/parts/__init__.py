"""What several attacks share: the channel-coupling graph, fine-tuning, magnitude pruning."""
