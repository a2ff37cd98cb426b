"""Reads SentencePiece models and writes them as ``tokenizer.json``, proved equal."""
