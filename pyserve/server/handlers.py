"""gRPC's method handlers taken apart, for interceptors that wrap them."""

from __future__ import annotations

from typing import Any

import grpc


def parts(handler: Any) -> tuple[Any, Any]:
    """A handler's function, and the maker of handlers of its arity."""
    if handler.request_streaming and handler.response_streaming:
        return handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler
