"""Certificates for tests: an authority, and what it signed."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def make_authority(folder, name="ca"):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = _sign(subject, subject, key, key, is_authority=True)
    _write(folder / f"{name}.pem", folder / f"{name}.key", certificate, key)
    return subject, key


def make_signed(folder, authority, name, host="127.0.0.1", ends=DAY):
    issuer, signer = authority
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    _write(
        folder / f"{name}.pem",
        folder / f"{name}.key",
        _sign(subject, issuer, key, signer, host=host, ends=ends),
        key,
    )


def _sign(subject, issuer, key, signer, *, is_authority=False, host="127.0.0.1", ends=DAY):
    now = datetime.datetime.now(datetime.UTC)
    hosts = dict.fromkeys(("127.0.0.1", host))
    names = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in hosts]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _write(certificate_path, key_path, certificate, key) -> None:
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
