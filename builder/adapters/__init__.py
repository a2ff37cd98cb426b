"""Adapters: read from PEFT, XTuner and mindformers, merged into weights or written beside them."""
