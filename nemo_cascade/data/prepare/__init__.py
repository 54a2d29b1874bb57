"""Released data sets as what stages read: SFT conversations as packed shards, RL rows as JSONL with splits."""
