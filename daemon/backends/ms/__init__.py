"""The embedded MindSpore engine: scheduler, block manager, sampler, and a MindSpore executor."""
