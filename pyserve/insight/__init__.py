"""What a model gets wrong, what a training did, what the network sees: numbers from arrays, and their figures."""
