"""KServe v2 and Triton's extensions over gRPC, with tritonclient's generated code."""
