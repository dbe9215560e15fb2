"""Settings of the HTTP server."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from osd.config.section import Section
from osd.records.query import DOMAIN_PATTERN

Access = Literal["open", "api_key", "admin", "off"]


class ServerConfig(Section):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model_names: tuple[str, ...] = Field((), description="Names that clients may use; empty: the target's own.")
    api_keys_sha256: tuple[str, ...] = Field((), description="SHA-256 (hex) of API keys; empty asks for none.")
    api_key_domains: dict[str, Annotated[str, Field(pattern=DOMAIN_PATTERN)]] = Field(
        default_factory=dict, description="Domains of queries that name none, by API key: { '<its SHA-256>' = 'sql' }."
    )
    admin_token_sha256: str = Field("", description="SHA-256 (hex) of the admin token; empty makes one per start.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body.")
    receive_timeout_s: float = Field(
        30.0, gt=0, description="Longest time a client may take to send a request's headers, and then its body."
    )
    metrics_access: Access = Field(
        "open", description="Who may read /metrics: 'open', 'api_key', 'admin' (the admin token) or 'off'."
    )
    otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector of traces, such as http://127.0.0.1:4318/v1/traces; empty: no traces."
    )
    trace_share: float = Field(
        0.1, ge=0, le=1, description="Share of requests that are traced; a caller's own decision comes first."
    )
    vllm_metrics: bool = Field(False, description="Add the metrics that vLLM has under vLLM's names (vllm:…).")
    openapi_access: Access = Field("open", description="Who may read /openapi.json; values as for metrics_access.")
    request_timeout_s: float = Field(600.0, gt=0, description="Longest time that one query may take.")
    ping_interval_s: float = Field(
        10.0, gt=0, description="Silence after which a stream sends a ping; a queued query's stream then begins."
    )
    stored_responses_bytes: int = Field(
        32 << 20,
        ge=0,
        description="Memory for the newest responses of /v1/responses, to retrieve and continue; 0 keeps none.",
    )
    background_responses: int = Field(
        64, ge=0, description="Most responses of /v1/responses in the background at once; 0 allows none."
    )
    trust_request_chat_template: bool = Field(
        False,
        description="Let requests bring chat templates (`chat_template`): programs, which run in a sandbox, but for as "
        "long as they like.",
    )
    allowed_origins: tuple[str, ...] = Field(
        (),
        description="Sites whose pages may use the API from a browser (CORS), such as 'https://a.example'; '*' is any.",
    )
    ssl_certfile: str = Field("", description="PEM file of the TLS certificate (and chain); empty serves plain HTTP.")
    ssl_keyfile: str = Field("", description="PEM file of the certificate's key; empty: it is in ssl_certfile.")
    root_path: str = Field("", description="Path under which a reverse proxy serves this, such as '/llm'.")

    @field_validator("model_names")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name.strip() or len(name) > 256 for name in names):
            raise ValueError("a name has 1 to 256 characters")
        return names

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is not an origin; write scheme, host and port, as in 'https://a.example'")
        return origins

    @field_validator("root_path")
    @classmethod
    def _is_path(cls, path: str) -> str:
        if path and not re.fullmatch(r"(/[^/\s?#]+)+", path):
            raise ValueError("it must begin with '/' and not end with '/', as '/llm'")
        return path

    @model_validator(mode="after")
    def _refuse_key_without_certificate(self) -> Self:
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @model_validator(mode="after")
    def _refuse_missing_keys(self) -> Self:
        if unknown := set(self.api_key_domains) - set(self.api_keys_sha256):
            raise ValueError(f"api_key_domains: the key {min(unknown)!r} is not in api_keys_sha256")
        for name in ("metrics_access", "openapi_access"):
            if getattr(self, name) == "api_key" and not self.api_keys_sha256:
                raise ValueError(f"{name} = 'api_key' needs keys in api_keys_sha256")
        return self
