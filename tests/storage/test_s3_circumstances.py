"""S3 as it is met in practice: credentials that change, an own authority, requester pays, KMS, versions."""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import s3fs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from s3_proxy import Action, Request, S3Proxy, pass_on, refuse

from segpipe import storage
from segpipe.errors import StorageError
from segpipe.storage import retry, s3_transfer


@pytest.fixture(autouse=True)
def _new_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    for _ in range(2):
        s3fs.S3FileSystem.clear_instance_cache()
        s3_transfer.forget()
        if not _:
            yield


@pytest.fixture
def proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """Between the client and the server; s3_bucket is there already."""
    proxy = S3Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


def authorization(request: Request) -> str:
    """The header that signs a request; the two clients spell its name otherwise."""
    return {name.lower(): value for name, value in request.headers.items()}.get("authorization", "")


def key_of(request: Request) -> str:
    """The access key that a request is signed with."""
    found = re.search(r"Credential=([^/]+)/", authorization(request))
    return found[1] if found else ""


def only(valid: Callable[[], str]) -> Callable[[Request], Action]:
    """Answers as S3 does when any other key has expired."""
    return lambda request: pass_on if key_of(request) == valid() else refuse(400, "ExpiredToken")


# --- credentials that change ---


@pytest.fixture
def without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No credentials in the environment; returns the folder that is HOME."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    return tmp_path


def write_credentials(home: Path, key: str) -> None:
    (home / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t{key}\n"
    )


@pytest.mark.parametrize("key", ["plain", "odd key"])
def test_a_session_that_is_renewed_in_its_file_goes_on(
    proxy: S3Proxy, s3_bucket: str, without_variables: Path, key: str
) -> None:
    write_credentials(without_variables, "FIRST")
    proxy.decide = only(lambda: "FIRST")
    uri = f"s3://{s3_bucket}/{key}"
    storage.put(uri, b"x")
    assert storage.read_bytes(uri) == b"x"

    write_credentials(without_variables, "SECOND")
    proxy.decide = only(lambda: "SECOND")
    assert storage.read_bytes(uri) == b"x"
    assert storage.exists(uri)
    assert [item.key for item in storage.list_objects(f"s3://{s3_bucket}")] == [key]
    storage.put(uri, b"y")
    seen = len(proxy.seen)
    assert storage.read_bytes(uri) == b"y"
    assert [key_of(request) for request in proxy.seen[seen:]] == [
        "SECOND"
    ]  # nothing is tried with the old ones any more


def test_a_session_that_is_not_renewed_is_told_once(
    proxy: S3Proxy, s3_bucket: str, without_variables: Path
) -> None:
    write_credentials(without_variables, "FIRST")
    proxy.decide = only(lambda: "NONE")
    with pytest.raises(StorageError, match=r"ExpiredToken.*have expired, get new ones"):
        storage.read(f"s3://{s3_bucket}/odd key")
    assert len(proxy.seen) == 2


def test_a_listing_goes_on_with_renewed_credentials(
    proxy: S3Proxy, s3_bucket: str, without_variables: Path
) -> None:
    for number in range(25):  # three pages
        boto3.client("s3", aws_access_key_id="k", aws_secret_access_key="s").put_object(
            Bucket=s3_bucket, Key=f"{number:02}", Body=b"x"
        )
    write_credentials(without_variables, "FIRST")
    proxy.decide = only(lambda: "FIRST")
    listing = storage.list_objects(f"s3://{s3_bucket}")
    first = next(listing)
    write_credentials(without_variables, "SECOND")
    proxy.decide = only(lambda: "SECOND")
    assert [first.key, *(item.key for item in listing)] == [f"{number:02}" for number in range(25)]


def test_a_credential_process_is_asked_again_when_its_session_ends(
    proxy: S3Proxy, s3_bucket: str, without_variables: Path
) -> None:
    count = without_variables / "count"
    count.write_text("0")
    program = without_variables / "process.py"
    program.write_text(
        "import datetime, json, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[1]); n = int(file.read_text()) + 1; file.write_text(str(n))\n"
        "ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'KEY{n}', 'SecretAccessKey': 's',"
        " 'SessionToken': 't', 'Expiration': ends.isoformat()}))\n"
    )
    (without_variables / ".aws" / "config").write_text(
        f"[default]\ncredential_process = {sys.executable} {program} {count}\n"
    )
    proxy.decide = only(lambda: f"KEY{count.read_text()}")  # an older one has been withdrawn
    for number in range(4):
        storage.put(f"s3://{s3_bucket}/{number}", b"x")
        assert storage.read_bytes(f"s3://{s3_bucket}/{number}") == b"x"
    assert int(count.read_text()) > 1


def test_a_credential_process_that_fails_is_named(
    s3_server: str, without_variables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (without_variables / ".aws" / "config").write_text("[default]\ncredential_process = false\n")
    with pytest.raises(StorageError, match="credential_process of the profile"):
        storage.read("s3://bucket/a")


# --- an authority of one's own ---


def certificate(subject: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None):
    """A certificate and its key, signed by issuer or itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def private(
    s3_server: str, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[S3Proxy, bytes]]:
    """The S3 server behind TLS of an authority that nobody knows, and the authority's certificate."""
    authority = certificate("An authority", None)
    server, key = certificate("127.0.0.1", authority)
    chain = tmp_path / "server.pem"
    no_password = serialization.NoEncryption()
    chain.write_bytes(
        pem(server)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    proxy = S3Proxy(s3_server, context)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy, pem(authority[0])
    proxy.close()


@pytest.mark.parametrize("others", [0, 2])
def test_a_private_authority_is_trusted_when_named(
    private: tuple[S3Proxy, bytes], s3_bucket: str, tmp_path: Path, monkeypatch, others: int
) -> None:
    bundle = tmp_path / "bundle.pem"
    more = b"".join(pem(certificate(f"Another {number}", None)[0]) for number in range(others))
    bundle.write_bytes(more + private[1])
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # the proxy knows no chunks
    for key in ("plain", "odd key"):
        storage.put(f"s3://{s3_bucket}/{key}", b"x")
        assert storage.read_bytes(f"s3://{s3_bucket}/{key}") == b"x"
    assert len(list(storage.list_objects(f"s3://{s3_bucket}"))) == 2
    fetched = [request for request in private[0].seen if request.method == "GET" and "plain" in request.path]
    assert "aiohttp" not in fetched[0].headers.get("User-Agent", "").lower()
    assert "Botocore" not in fetched[0].headers.get("User-Agent", "")  # the quick way trusts it too


def test_an_unknown_authority_says_how_to_name_it(
    private: tuple[S3Proxy, bytes], s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with pytest.raises(StorageError, match="name the file of your own authority in AWS_CA_BUNDLE"):
        storage.read(f"s3://{s3_bucket}/a")


# --- other buckets ---


def test_requester_pays_goes_with_every_request(
    proxy: S3Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(request: Request) -> Action:
        pays = {name.lower() for name in request.headers} & {"x-amz-request-payer"}
        return pass_on if pays else refuse(403, "AccessDenied")

    proxy.decide = decide
    with pytest.raises(StorageError, match="set SEGPIPE_STORAGE_REQUESTER_PAYS=true"):
        storage.put(f"s3://{s3_bucket}/plain", b"x")
    monkeypatch.setenv("SEGPIPE_STORAGE_REQUESTER_PAYS", "true")
    for key in ("plain", "odd key"):
        uri = f"s3://{s3_bucket}/{key}"
        storage.put(uri, b"x")
        assert storage.read_bytes(uri) == b"x"
        assert storage.exists(uri)
        assert len(list(storage.list_objects(f"s3://{s3_bucket}"))) == 1
        storage.delete(uri)
    storage.create(f"s3://{s3_bucket}/new", b"x")
    quick = [one for one in proxy.seen if one.path.endswith("/plain") and one.method == "GET"]
    assert len(quick) == 1


def test_a_bucket_encrypted_by_kms_is_a_bucket(s3_bucket: str) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "alias/x"}}
    boto3.client("s3").put_bucket_encryption(
        Bucket=s3_bucket, ServerSideEncryptionConfiguration={"Rules": [rule]}
    )
    for key in ("plain", "odd key"):
        uri = f"s3://{s3_bucket}/{key}"
        storage.create(uri, b"first")
        storage.put(uri, b"second")
        blob = storage.read(uri)
        assert (blob.data, blob.etag) == (b"second", storage.etag(uri))
    assert [item.etag for item in storage.list_objects(f"s3://{s3_bucket}")] == [
        storage.etag(f"s3://{s3_bucket}/{key}") for key in ("odd key", "plain")
    ]


def test_a_versioned_bucket_is_what_it_is_now(s3_bucket: str) -> None:
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    uri = f"s3://{s3_bucket}/a"
    storage.create(uri, b"first")
    storage.put(uri, b"second")
    assert [item.size for item in storage.list_objects(f"s3://{s3_bucket}")] == [6]
    storage.delete(uri)
    assert not storage.exists(uri)
    assert list(storage.list_objects(f"s3://{s3_bucket}")) == []
    storage.create(uri, b"third")
    assert storage.read_bytes(uri) == b"third"


@pytest.mark.parametrize(
    ("variable", "region"), [("AWS_REGION", "eu-west-1"), ("AWS_DEFAULT_REGION", "eu-west-2")]
)
def test_requests_are_signed_for_the_region_of_the_environment(
    proxy: S3Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, region: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(variable, region)
    for key in ("plain", "odd key"):
        storage.put(f"s3://{s3_bucket}/{key}", b"x")
    assert len(proxy.seen) == 2
    assert all(f"/{region}/s3/" in authorization(request) for request in proxy.seen)


def test_objects_in_cold_storage_are_listed_with_their_class(s3_bucket: str) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=s3_bucket, Key="cold", Body=b"x", StorageClass="DEEP_ARCHIVE")
    client.put_object(Bucket=s3_bucket, Key="warm", Body=b"x")
    listed = {item.key: item.storage_class for item in storage.list_objects(f"s3://{s3_bucket}")}
    assert listed == {"cold": "DEEP_ARCHIVE", "warm": ""}


def test_markers_of_folders_are_no_objects(s3_bucket: str) -> None:
    for key in ("in/", "in/day_$folder$", "in/a", "in/kept_$folder$x"):
        storage.put(f"s3://{s3_bucket}/{key}", b"x" if key == "in/a" else b"")
    storage.put(f"s3://{s3_bucket}/in/full_$folder$", b"x")
    listed = [item.key for item in storage.list_objects(f"s3://{s3_bucket}/in")]
    assert listed == ["a", "full_$folder$", "kept_$folder$x"]


@pytest.mark.parametrize("home", [None, "/nonexistent", "read-only"])
def test_a_home_that_is_missing_or_may_not_be_written_is_no_matter(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        (tmp_path / "home").mkdir()
        (tmp_path / "home").chmod(stat.S_IRUSR | stat.S_IXUSR)
        monkeypatch.setenv("HOME", str(tmp_path / "home") if home == "read-only" else home)
    storage.put(f"s3://{s3_bucket}/a", b"x")
    assert storage.read_bytes(f"s3://{s3_bucket}/a") == b"x"
