"""HTTP API flavours. Each is parse and format; what is true of a request is decided in ``service``."""
