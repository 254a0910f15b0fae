"""Secrets of AWS Secrets Manager (moto's server, by boto3) and of Vault (its HTTP interface, by hvac)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from millrace.core.secrets import redact
from millrace.errors import ProjectError
from millrace.project import load_project

# Vault itself is in no package registry: where its program is installed it is tested too.
PROGRAM = os.environ.get("VAULT_PROGRAM") or shutil.which("vault") or ""
TOKEN = "s.this-is-the-token"
KV = {"secret": "2", "old": "1"}
SECRETS = {
    "secret/shop/db": {"user": "clerk", "password": "pa/ss&word"},
    "secret/one": {"url": "postgresql://v2/one"},
    "old/shop": {"url": "postgresql://v1/shop"},
}


def _url(write, reference: str, environ: dict[str, str]) -> str:
    root = write({"millrace.yaml": ("${env:SHOP_DB_URL}", reference)})
    return load_project(root, environ=environ).connection_url("shop_db")


def _why(write, reference: str, environ: dict[str, str]) -> str:
    with pytest.raises(ProjectError) as error:
        _url(write, reference, environ)
    assert "millrace.yaml:7:50" in str(error.value)
    return error.value.what


@pytest.fixture
def aws(monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield boto3.client("secretsmanager")
    server.stop()


def test_aws(write, aws, monkeypatch):
    aws.create_secret(Name="shop/db", SecretString=json.dumps({"password": "pa/ss&word", "port": 5432}))
    aws.create_secret(Name="whole", SecretString="postgresql://u:topsecret@h/whole")
    aws.create_secret(Name="bytes", SecretBinary=b"\x00")
    found = _url(write, "postgresql://shop:${aws:shop/db#password}@h/d", {})
    assert found == "postgresql://shop:pa%2Fss%26word@h/d"
    assert redact("it is pa/ss&word") == "it is ***"
    assert "pa%2Fss" not in redact(found)
    assert _url(write, "${aws:whole}", {}) == "postgresql://u:topsecret@h/whole"
    assert redact("topsecret") == "***"
    assert _url(write, "postgresql://h:${aws:shop/db#port}/d", {}) == "postgresql://h:5432/d"
    assert _why(write, "${aws:nothing}", {}).startswith(
        "AWS Secrets Manager has no secret nothing in region eu-central-1; connection shop_db of environment dev"
    )
    assert _why(write, "${aws:shop/db#pasword}", {}).startswith("secret shop/db of AWS Secrets Manager has no field")
    assert "is not JSON with fields" in _why(write, "${aws:whole#password}", {})
    assert "is binary" in _why(write, "${aws:bytes}", {})
    assert "in region eu-west-3" in _why(write, "${aws:whole}", {"AWS_REGION": "eu-west-3"})
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "cannot be asked for whole: You must specify a region" in _why(write, "${aws:whole}", {})


class Vault(BaseHTTPRequestHandler):
    """What Vault's documentation says of reading key/value secrets, and of who may."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.headers.get("X-Vault-Token") != TOKEN:
            return self._answer(403, {"errors": ["permission denied"]})
        path = self.path.removeprefix("/v1/")
        if path.startswith("sys/internal/ui/mounts/"):
            mount = path.rpartition("/")[2]
            return self._answer(200, {"data": {"type": "kv", "options": {"version": KV[mount]}}})
        mount, _, rest = path.partition("/")
        if KV[mount] == "2":
            kind, _, rest = rest.partition("/")
            if kind != "data":
                return self._answer(404, {"errors": []})
        found = SECRETS.get(f"{mount}/{rest}")
        if found is None:
            return self._answer(404, {"errors": []})
        return self._answer(200, {"data": {"data": found, "metadata": {}} if KV[mount] == "2" else found})

    def _answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(params=["interface", "vault"] if PROGRAM else ["interface"])
def vault(request, tmp_path):
    """The environment of a Vault that holds SECRETS: the interface as documented; Vault itself where it is installed."""
    if request.param == "interface":
        server = ThreadingHTTPServer(("127.0.0.1", 0), Vault)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {"VAULT_ADDR": f"http://127.0.0.1:{server.server_port}", "VAULT_TOKEN": TOKEN}
        server.shutdown()
        thread.join()
        server.server_close()
        return
    import hvac

    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    listener = f'listener "tcp" {{ address = "{address}" tls_disable = true }}'
    (tmp_path / "vault.hcl").write_text(f'storage "inmem" {{}}\n{listener}\ndisable_mlock = true\n')
    with (tmp_path / "vault.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "server", f"-config={tmp_path}/vault.hcl"], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
                break
            time.sleep(0.2)
        client = hvac.Client(f"http://{address}")
        keys = client.sys.initialize(1, 1)
        client.sys.submit_unseal_keys(keys["keys"])
        client.token = keys["root_token"]
        for mount, version in KV.items():
            client.sys.enable_secrets_engine("kv", mount, options={"version": version})
        time.sleep(2)  # version 2 is set up in the background
        for path, fields in SECRETS.items():
            mount, _, rest = path.partition("/")
            client.write_data(
                f"{mount}/data/{rest}" if KV[mount] == "2" else path,
                data={"data": fields} if KV[mount] == "2" else fields,
            )
        yield {"VAULT_ADDR": f"http://{address}", "VAULT_TOKEN": client.token}
    finally:
        process.terminate()
        process.wait(30)


def test_vault(write, vault, tmp_path):
    found = _url(write, "postgresql://${vault:secret/shop/db#user}:${vault:secret/shop/db#password}@h/d", vault)
    assert found == "postgresql://clerk:pa%2Fss%26word@h/d"
    assert redact("pa/ss&word") == "***"
    assert _url(write, "${vault:secret/one}", vault) == "postgresql://v2/one"
    assert _url(write, "${vault:old/shop#url}", vault) == "postgresql://v1/shop"
    home = tmp_path / "home"
    home.mkdir()
    (home / ".vault-token").write_text(vault["VAULT_TOKEN"] + "\n")
    logged_in = {"VAULT_ADDR": vault["VAULT_ADDR"], "HOME": str(home)}
    assert _url(write, "${vault:secret/one}", logged_in) == "postgresql://v2/one"
    assert _why(write, "${vault:secret/two}", vault).startswith("Vault has no secret secret/two; connection shop_db")
    assert "has no field pasword" in _why(write, "${vault:secret/shop/db#pasword}", vault)
    assert "has 2 fields" in _why(write, "${vault:secret/shop/db}", vault)
    assert "names no path below a mount" in _why(write, "${vault:secret}", vault)
    assert _why(write, "${vault:secret/one}", {**vault, "VAULT_TOKEN": "wrong"}).startswith(
        "Vault refused secret secret/one"
    )
    assert _why(write, "${vault:secret/one}", {}).startswith("VAULT_ADDR is not set")
    assert _why(write, "${vault:secret/one}", {"VAULT_ADDR": "http://127.0.0.1:1"}).startswith("VAULT_TOKEN is not set")
    gone = {**vault, "VAULT_ADDR": "http://127.0.0.1:1"}
    assert _why(write, "${vault:secret/one}", gone).startswith(
        "Vault at http://127.0.0.1:1 cannot be asked for secret/one"
    )
