"""Signed C2PA manifests (Content Credentials): the scan as parent, and that a model made the colours.

Needs ``pip install 'colorized[c2pa]'``. The signature is the user's own: certificate chain and private key in PEM.
"""

import json
import mmap
import threading
from pathlib import Path
from typing import IO, Any

from .._version import __version__
from .labels import DIGITAL_SOURCE_TYPE

_MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "TIFF": "image/tiff", "WEBP": "image/webp"}
_READABLE = {**_MIME, "GIF": "image/gif", "AVIF": "image/avif", "HEIF": "image/heif", "MPO": "image/jpeg"}
_PARENT = "the-scan"


class Signer:
    """Signs colour copies.

    Args:
        certificate: PEM file with the certificate chain, the signer's own first.
        key: PEM file with the private key, without a password.

    Raises:
        ValueError: if c2pa isn't installed, or a file can't be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        try:
            import c2pa
        except ImportError:
            raise ValueError("signing needs one more package: pip install 'colorized[c2pa]'") from None
        self._c2pa = c2pa
        try:
            chain, secret = certificate.read_bytes(), key.read_bytes()
            self._info: Any = c2pa.C2paSignerInfo(_algorithm(secret), chain, secret, None)
            c2pa.Signer.from_info(self._info).close()
        except (OSError, ValueError, TypeError, c2pa.C2paError) as error:
            raise ValueError(
                f"{certificate}, {key}: can't be used for signing ({error}); see docs/how-to/archive.md"
            ) from None
        self._lock = threading.Lock()

    def sign(
        self, content: IO[bytes], signed: IO[bytes], *, format_name: str, source: Path, source_format: str
    ) -> None:
        """Copy the finished file ``content`` into ``signed``, with a manifest.

        Raises:
            ValueError: if the format can't hold a manifest, or signing fails.
        """
        if format_name not in _MIME:
            raise ValueError(f"{format_name} can't be signed; save as .tif, .png, .jpg or .webp (--format)")
        content.seek(0)
        signed.seek(0)
        try:
            with self._lock, self._c2pa.Builder.from_json(json.dumps(_manifest(source, format_name))) as builder:
                if source_format in _READABLE:
                    parent = {"title": source.name, "relationship": "parentOf", "instance_id": _PARENT}
                    with source.open("rb") as stream:
                        builder.add_ingredient(json.dumps(parent), _READABLE[source_format], stream)
                with self._c2pa.Signer.from_info(self._info) as signer:
                    builder.sign(signer, _MIME[format_name], content, signed)
        except self._c2pa.C2paError as error:
            raise ValueError(f"can't be signed ({error})") from error


def _manifest(source: Path, format_name: str) -> dict[str, Any]:
    agent = {"name": "COLORIZED", "version": __version__}
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [_PARENT]}}
    colored = {
        "action": "c2pa.color_adjustments",
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "softwareAgent": agent,
        "description": "Colours added by a machine-learning model: plausible, not historical.",
    }
    return {
        "claim_generator_info": [agent],
        "title": source.name,
        "format": _MIME[format_name],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [opened, colored]}}],
    }


def _algorithm(key: bytes) -> str:
    """C2PA's name of the signature that a private key makes."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    secret = load_pem_private_key(key, password=None)
    if isinstance(secret, ec.EllipticCurvePrivateKey):
        return {256: "es256", 384: "es384", 521: "es512"}[secret.curve.key_size]
    if isinstance(secret, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(secret, rsa.RSAPrivateKey):
        return "ps256"
    raise ValueError(f"keys of type {type(secret).__name__} make no C2PA signature; use an elliptic curve (P-256)")


def read_manifest(file: Path) -> dict[str, Any] | None:
    """What a file's active manifest says, and ``"validation_state"``; ``None`` without a manifest or without c2pa."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"c2pa") < 0:  # importing c2pa takes longer than the rest of the command
            return None
    try:
        import c2pa
    except ImportError:
        return None
    try:
        with c2pa.Reader(file) as reader:
            store = json.loads(reader.json())
    except (c2pa.C2paError, OSError):
        return None
    return {**store["manifests"][store["active_manifest"]], "validation_state": store.get("validation_state")}
