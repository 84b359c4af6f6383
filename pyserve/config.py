"""Every setting of the server, typed, with its unit, from (last wins) file, environment and flags.

File: TOML, named by `PYSERVE_CONFIG` or the `--config` flag. Environment: `PYSERVE_<SETTING>`, such as
`PYSERVE_PORT=6000`; lists as JSON. `pyserve config` prints them all with where each came from.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from pyserve.errors import FieldViolation, InvalidArgumentError

MIB = 1024 * 1024
GIB = 1024 * MIB


class Settings(BaseSettings):
    """All settings with their defaults."""

    model_config = SettingsConfigDict(env_prefix="PYSERVE_", extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path("pyserve-data"), description="Folder of datasets, jobs and models.")
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; beyond loopback only with TLS and tokens, or --insecure.",
    )
    port: int = Field(default=50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    insecure: bool = Field(default=False, description="Allow to listen beyond loopback without TLS or tokens.")
    tls_cert: Path | None = Field(default=None, description="PEM file of the server's certificate chain.")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's private key.")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authorities of clients' certificates; asks clients for one."
    )
    require_tokens: bool = Field(
        default=False, description="Ask for tokens on loopback too; elsewhere they are, but with --insecure."
    )
    tokens_file: Path | None = Field(default=None, description="File of tokens; default: data_dir/tokens.json.")
    reflection: Literal["off", "token", "open"] = Field(
        default="token", description="gRPC server reflection: none, with any token where tokens are asked, open."
    )
    audit_log: Path | None = Field(default=None, description="File with a JSON line for each call; default: none.")
    audit_log_bytes: int = Field(
        default=64 * MIB, ge=4096, description="Size of a full audit log, of which ten are kept, bytes."
    )
    audit_predictions: bool = Field(default=False, description="Write predictions that succeed down there too.")
    max_calls_per_s: float = Field(default=0.0, ge=0, description="Calls of one token each second; 0: any number.")
    max_calls_at_once: int = Field(
        default=1024, ge=0, description="Calls of one token under way, streams among them; 0: any number."
    )
    max_connections: int = Field(default=4096, ge=1, description="Connections at once; more are closed at once.")
    dataset_roots: list[Path] = Field(default=[], description="Folders under which Register may find datasets.")
    weights_roots: list[Path] = Field(
        default=[], description="Folders of pretrained weights that trainings may name."
    )

    max_message_bytes: int = Field(default=64 * MIB, ge=MIB, description="Largest gRPC message, both ways, bytes.")
    max_image_pixels: int = Field(default=64_000_000, ge=1, description="Largest picture decoded, pixels.")
    max_archive_bytes: int = Field(
        default=16 * GIB, ge=1, description="Largest upload, packed or unpacked, bytes."
    )
    max_archive_entries: int = Field(default=2_000_000, ge=1, description="Most files in an upload.")
    max_compression_ratio: float = Field(default=200.0, gt=1, description="Most unpacked bytes per packed byte.")
    max_predict_images: int = Field(default=256, ge=1, description="Most pictures in one Predict call.")
    max_waiting_calls: int = Field(
        default=256, ge=0, description="Calls of one kind that may wait, and predictions; more are refused."
    )
    upload_ttl_s: float = Field(default=86_400.0, gt=0, description="How long a broken upload can be resumed, s.")

    max_running_jobs: int = Field(default=2, ge=1, description="Jobs that run at once.")
    max_queued_jobs: int = Field(default=256, ge=1, description="Jobs that may wait.")
    job_threads: int = Field(default=0, ge=0, description="CPU threads of a job; 0 means all cores.")
    job_nice: int = Field(
        default=19,
        ge=0,
        le=19,
        description="How far jobs stand back for prediction on the CPU; 0 means not at all.",
    )
    predict_threads: int = Field(default=0, ge=0, description="CPU threads of prediction; 0 means all cores.")
    predict_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="What networks compute in; bfloat16 is faster and a little less exact."
    )
    max_batch_size: int = Field(
        default=0, ge=0, le=1024, description="Most pictures in one batch; 0 means 8 on a CPU, 32 on a GPU."
    )
    preferred_batch_sizes: list[int] = Field(
        default=[], description="Sizes to which a backlog is cut; empty means any."
    )
    max_queue_delay_s: float = Field(
        default=0.002, ge=0, le=1, description="Most time that a batch waits for a picture being decoded, s."
    )
    max_queued_bytes: int = Field(
        default=GIB, ge=MIB, description="Size of the pictures that may wait for prediction, bytes."
    )
    checkpoint_interval_s: float = Field(default=60.0, ge=0, description="Most time between checkpoints, s.")
    resume_on_start: bool = Field(
        default=False, description="Queue interrupted jobs again when the server starts."
    )
    keep_jobs: int | None = Field(
        default=None,
        ge=0,
        description="Ended jobs kept: the newest, beside the best of each model and those in use; default: all.",
    )
    keep_models: int | None = Field(
        default=None,
        ge=1,
        description="Versions of each model kept: the newest, beside the best and those in use; default: all.",
    )
    keep_checkpoints: int | None = Field(
        default=0,
        ge=0,
        description="Ended jobs whose checkpoints are kept; those of jobs that can go on always are.",
    )
    max_models_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory for models, least recently used out, bytes; 0 means half of the device's.",
    )
    bundle: Path | None = Field(
        default=None, description="Folder of an exported model that the server begins with; default: none."
    )
    bundle_model_id: str = Field(
        default="", description="Name part of that model, models/{id}; default: the folder's name."
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port for Prometheus; 0 takes a free one; default: none."
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="Address for Prometheus; beyond loopback only with --insecure."
    )
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://.+)?$",
        description="Where traces go by OTLP: http://host:4317; default: OTEL_EXPORTER_OTLP_ENDPOINT, or none.",
    )
    drain_s: float = Field(default=30.0, ge=0, description="Time for running calls and jobs at shutdown, s.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level logged."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="Form of the log's lines.")

    @property
    def tokens_path(self) -> Path:
        """Where the tokens are."""
        return self.tokens_file or self.data_dir / "tokens.json"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before environment before file; no .env file and no secrets folder."""
        path = os.environ.get("PYSERVE_CONFIG")
        file = (TomlConfigSettingsSource(settings_cls, Path(path)),) if path else ()
        return (init_settings, env_settings, *file)


def load(**flags: Any) -> Settings:
    """The settings in force.

    Args:
        flags: settings given on the command line; None means not given.

    Raises:
        InvalidArgumentError: naming the setting, what it got and what was expected.
    """
    path = os.environ.get("PYSERVE_CONFIG")
    if path and not Path(path).is_file():
        raise InvalidArgumentError.field("PYSERVE_CONFIG", path, "the path of a TOML file")
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        violations = tuple(
            FieldViolation(".".join(str(p) for p in e["loc"]), f"got {e['input']!r}: {e['msg'].lower()}")
            for e in error.errors()
        )
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgumentError(message, fields=violations) from None
    except SettingsError as error:  # a list that is not JSON
        raise InvalidArgumentError(f"settings: {error}") from None
    except ValueError as error:  # TOMLDecodeError, of tomllib or tomli
        raise InvalidArgumentError(f"PYSERVE_CONFIG: {path} is not valid TOML: {error}") from None


def origins() -> dict[str, str]:
    """Where each setting's value comes from: "environment PYSERVE_PORT", "file settings.toml" or "default"."""
    path = os.environ.get("PYSERVE_CONFIG")
    in_file = TomlConfigSettingsSource(Settings, Path(path))() if path else {}
    in_environment = EnvSettingsSource(Settings)()
    return {
        name: f"environment PYSERVE_{name.upper()}"
        if name in in_environment
        else f"file {path}"
        if name in in_file
        else "default"
        for name in Settings.model_fields
    }
