"""From the outbox to the coordinator and back: folder, network, bucket, Flower, medium."""
