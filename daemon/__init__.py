"""Serves a model repository over HTTP and gRPC."""
