"""Requests that cannot be parsed: their sender's mistake, and no reason for a traceback in the node's log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_MALFORMED = object()


class RefuseMalformed(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Answers INVALID_ARGUMENT in place of grpc.aio's UNKNOWN, for calls with one request.

    Our handlers of streams of requests see a DecodeError themselves.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        parse = handler.request_deserializer
        serve = handler.unary_stream if handler.response_streaming else handler.unary_unary

        def parse_or_mark(data: bytes) -> Any:
            try:
                return parse(data)
            except DecodeError:
                return _MALFORMED

        async def serve_or_refuse(request: Any, context: Any) -> Any:
            if request is _MALFORMED:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be parsed")
            answer = serve(request, context)
            if not hasattr(answer, "__aiter__"):
                return await answer
            async for message in answer:
                await context.write(message)

        make = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(serve_or_refuse, parse_or_mark, handler.response_serializer)
