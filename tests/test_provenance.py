"""Signed manifests, read by C2PA's own reader."""

import datetime
import json
from pathlib import Path

import pytest
from conftest import make_pipeline
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner

from colorized_pipeline.cli import app

c2pa = pytest.importorskip("c2pa")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A small authority and a signer's certificate of it, as C2PA wants them (specification 2.1, 14.5)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text: str) -> x509.Name:
        attributes = ((NameOID.COUNTRY_NAME, "CH"), (NameOID.ORGANIZATION_NAME, text), (NameOID.COMMON_NAME, text))
        return x509.Name([x509.NameAttribute(*attribute) for attribute in attributes])

    now = datetime.datetime.now(datetime.timezone.utc)
    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in ("authority", "signer")}
    certificates = []
    for who in ("signer", "authority"):
        is_authority = who == "authority"
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(f"Test {who}"))
            .issuer_name(name("Test authority"))
            .public_key(keys[who].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_authority,
                    key_cert_sign=is_authority,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[who].public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["authority"].public_key()), critical=False
            )
        )
        if not is_authority:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
            )
        certificates.append(builder.sign(keys["authority"], hashes.SHA256()))
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates))
    key.write_bytes(
        keys["signer"].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return chain, key


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained("checkpoint")
    chain, key = make_certificate(tmp_path)

    def invoke(*words: str):
        options = [
            "--checkpoint",
            "checkpoint",
            "--device",
            "cpu",
            "--c2pa-certificate",
            str(chain),
            "--c2pa-key",
            str(key),
        ]
        return CliRunner().invoke(app, ["colorize", *words, *options])

    return invoke


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_manifest_names_the_scan_and_the_model(run, suffix: str) -> None:
    Image.fromarray(skimage_data.camera()[:90, :120]).save(f"scan.{suffix}")
    result = run(f"scan.{suffix}", "-o", f"copy.{suffix}")
    assert result.exit_code == 0, result.output
    with c2pa.Reader(f"copy.{suffix}") as reader:
        store = json.loads(reader.json())
    manifest = store["manifests"][store["active_manifest"]]
    assert store["validation_state"] == "Valid"  # whole and signed; a test's authority is on no list of trust
    (ingredient,) = manifest["ingredients"]
    assert ingredient["relationship"] == "parentOf" and ingredient["title"] == f"scan.{suffix}"
    (actions,) = (one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.color_adjustments"]
    assert actions[1]["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    told = CliRunner().invoke(app, ["inspect", f"copy.{suffix}"])
    assert told.exit_code == 0 and "c2pa: Valid, signed by Test signer" in told.stdout
    assert Image.open(f"copy.{suffix}").size == (120, 90)


def test_a_changed_copy_is_not_valid(run) -> None:
    Image.fromarray(skimage_data.camera()[:90, :120]).save("scan.png")
    run("scan.png", "-o", "copy.png")
    content = bytearray(Path("copy.png").read_bytes())
    position = content.index(b"IDAT") + 200
    content[position] ^= 1
    Path("copy.png").write_bytes(content)
    with c2pa.Reader("copy.png") as reader:
        assert json.loads(reader.json())["validation_state"] == "Invalid"


def test_what_cannot_be_signed_is_said(run, tmp_path: Path) -> None:
    Image.fromarray(skimage_data.camera()[:90, :120]).save("scan.bmp")
    result = run("scan.bmp", "-o", "copy.bmp")
    assert result.exit_code == 1 and "BMP can't be signed; save as" in result.stderr
    (tmp_path / "key.pem").write_text("not a key")
    result = run("scan.bmp", "-o", "copy.tif")
    assert result.exit_code == 2 and "key.pem: can't be used for signing" in result.stderr
    words = ["colorize", "scan.bmp", "-o", "x.tif", "--c2pa-key", "key.pem"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "belong together" in result.stderr
