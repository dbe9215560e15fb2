"""API keys of the OpenAI routes; only their SHA-256 hashes are known."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256

from serving.guards.wrong_secrets import WrongSecrets
from serving.wire.errors import ApiError


def is_secret(candidate: str, secret_sha256: str) -> bool:
    """Compare in constant time. An empty hash matches nothing."""
    return hmac.compare_digest(sha256(candidate.encode(errors="replace")).hexdigest(), secret_sha256.lower())


def bearer(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def api_key(headers: Mapping[str, str]) -> str | None:
    """The key of a request: `Authorization: Bearer`, or `x-api-key` as Anthropic's clients send it."""
    return bearer(headers.get("authorization")) or headers.get("x-api-key") or None


class ApiKeys:
    """The accepted API keys; without any, everyone is admitted."""

    def __init__(
        self, hashes: Iterable[str], wrong: WrongSecrets | None = None, domains: Mapping[str, str] | None = None
    ) -> None:
        """By the keys' hashes; `domains`: hash to the domain of the key's queries."""
        self._hashes = tuple(hashes)
        self._domains = dict(domains or {})
        self._wrong = wrong or WrongSecrets()

    def allows(self, key: str | None) -> bool:
        """Whether no key is needed, or this is a right one."""
        if not self._hashes:
            return True
        # Every hash is compared, so that the time taken does not tell which one matched.
        return key is not None and sum(is_secret(key, known) for known in self._hashes) > 0

    def domain(self, key: str | None) -> str | None:
        """The domain of a key's queries that name none themselves; None if the key has none."""
        found = None
        for known, domain in self._domains.items():
            if key is not None and is_secret(key, known):
                found = domain
        return found

    async def check(self, key: str | None, peer: str) -> None:
        """Return if the key is right, or none is needed.

        Raises:
            ApiError: 401 for a wrong or missing key, 429 after too many wrong ones.
        """
        if self.allows(key):
            return
        message = "Wrong or missing API key; send it as 'Authorization: Bearer KEY'."
        refusal = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        raise refusal if key is None else await self._wrong.refusal(peer, refusal)
