"""Errors: the API's Status objects, in a real API server's words."""

from __future__ import annotations

import re
from typing import Any

from devcluster.kinds import Kind, Object


class ApiError(Exception):
    """A Status of failure: HTTP's code, Kubernetes' reason, a real API server's words."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None,
                 **meta: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {"kind": "Status", "apiVersion": "v1", "metadata": meta, "status": "Failure",
                       "message": message, "reason": reason,
                       **({"details": details} if details is not None else {}), "code": code}


def about(kind: Kind, name: str = "", **more: Any) -> Object:
    """Return a Status's details."""
    return {**({"name": name} if name else {}), **({"group": kind.group} if kind.group else {}),
            "kind": kind.plural, **more}


def not_found(kind: Kind, name: str) -> ApiError:
    """Return the error of an object that is not there."""
    return ApiError(404, "NotFound", f'{kind.resource} "{name}" not found', about(kind, name))


def forbidden(kind: Kind, name: str, why: str) -> ApiError:
    """Return the error of what must not be done."""
    return ApiError(403, "Forbidden",
                    (f'{kind.resource} "{name}"' if name else kind.resource) + f" is forbidden: {why}",
                    about(kind, name))


def conflict(kind: Kind, name: str, called: str, why: str) -> ApiError:
    """Return the error of an object that is not any more what the client thinks."""
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {called} "{name}": {why}',
                    about(kind, name))


def wrong_uid(kind: Kind, namespace: str, name: str, given: str, known: str) -> ApiError:
    """Return the error of an object that is another one by now, or none."""
    return conflict(kind, name, kind.resource, (
        f"StorageError: invalid object, Code: 4, Key: /registry/{kind.plural}/{namespace}/{name}, "
        "ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: "
        f"{given}, UID in object meta: {known}"))


def bad_request(message: str) -> ApiError:
    """Return the error of what is not understood."""
    return ApiError(400, "BadRequest", message)


NOWHERE = ApiError(404, "NotFound", "the server could not find the requested resource", {})


class Malformed(Exception):
    """A value of the wrong type: a Go decoder's words, the field, the value's text up to where it gave up."""

    def __init__(self, words: str, field: str, text: str) -> None:
        super().__init__(words)
        self.words, self.field, self.text = words, field, text

    def error(self, kind: str, body: str) -> ApiError:
        """Return the error, which quotes the body around the place as a real API server does."""
        match = re.search(rf'"{re.escape(self.field)}"\s*:\s*{re.escape(self.text)}', body)
        end = match.end() if match else len(body)
        near, wide = (body[max(end - size, 0):end + size] for size in (10, 50))
        return bad_request(f'{kind} in version "v1" cannot be handled as a {kind}: {self.words}, error found '
                           f"in #{min(end, 10)} byte of ...|{near}|..., bigger context ...|{wide}|...")
