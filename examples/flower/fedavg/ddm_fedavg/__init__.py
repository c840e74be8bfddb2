"""FedAvg of one DiT: the same network, loss, batches and optimizer as the experts have."""
