"""KServe v2 without a transport: named tensors to a generate request, its events to tensors, model metadata.

``http_api`` and ``grpc_api`` both use it; it knows nothing of either.
"""
