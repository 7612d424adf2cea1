"""The Tornado server that the benchmark compares with: the same two handlers, the same certificates."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys

import tornado.httpserver
import tornado.netutil
import tornado.web

# Without a cluster: what is measured is answered from memory.
DATABASES = {"alice": "mysql://root:0123456789abcdef0123456789abcdef@tcp(10.0.0.1:3306)/?maxAllowedPacket=0"}


class HeartBeat(tornado.web.RequestHandler):
    """GET heart_beat."""

    def get(self) -> None:
        """Answer as the playground server does."""
        user_id = self.get_query_argument("user_id")
        self.write({"user_id": user_id, "status": "ready" if user_id in DATABASES else "absent"})


class CreateDb(tornado.web.RequestHandler):
    """POST create_db."""

    def post(self) -> None:
        """Answer with a database that is known."""
        user_id = json.loads(self.request.body)["user_id"]
        self.write({"user_id": user_id, "data_source": DATABASES[user_id]})


async def main(key_store: str) -> None:
    """Serve until the end, after saying on which port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{key_store}/ca/ca.crt")
    context.load_cert_chain(f"{key_store}/server/server.crt", f"{key_store}/server/server.key")
    context.load_verify_locations(f"{key_store}/ca/ca.crl")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    context.verify_mode = ssl.CERT_REQUIRED
    # Each connection makes a whole handshake, as with the others.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    server = tornado.httpserver.HTTPServer(
        tornado.web.Application([("/api/heart_beat", HeartBeat), ("/api/create_db", CreateDb)]),
        ssl_options=context)
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1", backlog=1024)
    server.add_sockets(sockets)
    print(f"port={sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    # A line for each request, as parse_command_line of Tornado's own sets it up.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    asyncio.run(main(sys.argv[1]))
