"""`${aws:NAME#FIELD}` and `${vault:MOUNT/PATH#FIELD}`: secrets of AWS Secrets Manager and of HashiCorp Vault.

Both are read when a connection is opened, once a process, by the stores' own clients (extras `aws` and `vault`), which
also find where the store is and who asks: boto3's usual chain (`AWS_REGION`, `AWS_PROFILE`, roles), for Vault
`VAULT_ADDR`, `VAULT_TOKEN` or `~/.vault-token`, `VAULT_NAMESPACE` and `VAULT_CACERT`, all from the process environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from millrace.errors import ExtraMissing, MillraceError, did_you_mean

SECONDS = 10  # that a store may take to answer

Fail = Callable[[str, str | None], MillraceError]
"""Makes the error for a reference from a sentence and a hint."""


def read_aws(reference: str, environ: Mapping[str, str], fail: Fail) -> str:
    """Return a secret of AWS Secrets Manager: its text, or a field of its JSON.

    Args:
        reference: name or ARN of the secret; behind `#` a field.
        environ: the process environment; boto3 reads it too.
        fail: makes the error of a secret that cannot be read.

    Raises:
        MillraceError: made by `fail`; ExtraMissing when boto3 is not installed.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise ExtraMissing("a secret of AWS Secrets Manager", "aws") from None
    name, _, field = reference.partition("#")
    config = Config(connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 3})
    try:
        region = environ.get("AWS_REGION")  # which other SDKs read, and boto3 does not
        client = boto3.session.Session(region_name=region).client("secretsmanager", config=config)
        found = client.get_secret_value(SecretId=name)
    except ClientError as error:
        said = error.response.get("Error", {})
        if said.get("Code") == "ResourceNotFoundException":
            where = f"in region {client.meta.region_name}"
            raise fail(f"AWS Secrets Manager has no secret {name} {where}", "check its name and AWS_REGION") from None
        raise fail(
            f"AWS Secrets Manager refused secret {name}: {said.get('Message') or said.get('Code')}", None
        ) from None
    except BotoCoreError as error:
        raise fail(f"AWS Secrets Manager cannot be asked for {name}: {error}", _AWS_HINT) from None
    text = found.get("SecretString")
    if text is None:
        raise fail(f"secret {name} of AWS Secrets Manager is binary", "store it as text")
    if not field:
        return str(text)
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise fail(f"secret {name} of AWS Secrets Manager is not JSON with fields", f"write ${{aws:{name}}}")
    return _field(fields, field, f"secret {name} of AWS Secrets Manager", fail)


_AWS_HINT = "boto3 finds region and credentials in AWS_REGION, AWS_PROFILE, or the machine's role"


def read_vault(reference: str, environ: Mapping[str, str], fail: Fail) -> str:
    """Return a field of a secret in a key/value store (version 1 or 2) of HashiCorp Vault.

    Args:
        reference: the path as `vault kv get` takes it, the mount first; behind `#` the field, which may be left out
            when there is one only.
        environ: the process environment, with `VAULT_ADDR` and the others.
        fail: makes the error of a secret that cannot be read.

    Raises:
        MillraceError: made by `fail`; ExtraMissing when hvac is not installed.
    """
    try:
        import hvac
        from hvac.exceptions import Forbidden, InvalidPath, VaultError
        from requests.exceptions import RequestException
    except ImportError:
        raise ExtraMissing("a secret of Vault", "vault") from None
    path, _, field = reference.partition("#")
    mount, _, rest = path.strip("/").partition("/")
    if not rest:
        raise fail(f"${{vault:{reference}}} names no path below a mount", "write ${vault:secret/shop/db#password}")
    address, token = environ.get("VAULT_ADDR"), environ.get("VAULT_TOKEN") or _token_file(environ)
    if not address or not token:
        missing = "VAULT_ADDR" if not address else "VAULT_TOKEN"
        raise fail(
            f"{missing} is not set, which secret {path} of Vault needs", "or run: vault login" if address else None
        )
    authority: Any = environ.get("VAULT_CACERT") or True
    space = environ.get("VAULT_NAMESPACE")
    try:
        client = hvac.Client(address, token, verify=authority, namespace=space, timeout=SECONDS)
        # What `vault kv get` asks first: version 2 has another path. An old or strict server does not say.
        about = client.adapter.get(f"/v1/sys/internal/ui/mounts/{mount}", raise_exception=False)
        options = about.get("data", {}).get("options") if isinstance(about, dict) else None
        versioned = (options or {}).get("version") == "2"
        found = client.read(f"{mount}/data/{rest}" if versioned else path.strip("/"))
    except Forbidden:
        raise fail(
            f"Vault refused secret {path}", "the token needs the capability read there, or has expired"
        ) from None
    except InvalidPath:
        found = None
    except (VaultError, RequestException) as error:
        raise fail(f"Vault at {address} cannot be asked for {path}: {error}", None) from None
    if found is None:
        raise fail(f"Vault has no secret {path}", "check it with: vault kv get " + path)
    fields = found["data"]["data"] if versioned else found["data"]
    if not field and len(fields or {}) == 1:
        return str(next(iter(fields.values())))
    if not field:
        raise fail(f"secret {path} of Vault has {len(fields or {})} fields", f"name one: ${{vault:{path}#FIELD}}")
    return _field(fields or {}, field, f"secret {path} of Vault", fail)


def _token_file(environ: Mapping[str, str]) -> str | None:
    """Return the token that `vault login` left."""
    home = environ.get("HOME")
    path = Path(home, ".vault-token") if home else None
    try:
        return path.read_text().strip() if path is not None else None
    except OSError:
        return None


def _field(fields: Mapping[str, Any], name: str, whose: str, fail: Fail) -> str:
    value = fields.get(name)
    if value is None:
        raise fail(
            f"{whose} has no field {name}", did_you_mean(name, list(fields)) or f"it has: {', '.join(sorted(fields))}"
        )
    return value if isinstance(value, str) else json.dumps(value)


STORES: Mapping[str, Callable[[str, Mapping[str, str], Fail], str]] = {"aws": read_aws, "vault": read_vault}
"""How a reference is read, by its scheme."""
