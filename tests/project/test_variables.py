"""Variables and secrets: resolved late, shown never."""

from __future__ import annotations

import pytest

from millrace.core.secrets import redact
from millrace.errors import NotFound, ProjectError
from millrace.project import load_project

PASSWORD = 'p@ss:/%"'


def test_nothing_is_resolved_until_a_connection_is_opened(write):
    project = load_project(write(), environ={})
    assert project.connection("shop_db").url == "${env:SHOP_DB_URL}"
    with pytest.raises(ProjectError) as error:
        project.connection_url("shop_db")
    assert str(error.value) == (
        "variable SHOP_DB_URL is not set; connection shop_db of environment dev needs it\n"
        "  millrace.yaml:7:50\n"
        '  7 |     connections: {shop_db: {type: postgres, url: "${env:SHOP_DB_URL}"}}\n'
        "    |                                                  ^^^^^^^^^^^^^^^^^^^^\n"
        "  set SHOP_DB_URL in the environment, or in .env beside millrace.yaml"
    )


def test_an_inherited_connection_names_the_environment_in_use(write):
    with pytest.raises(ProjectError, match="connection shop_db of environment prod needs it"):
        load_project(write(), "prod", environ={}).connection_url("shop_db")
    with pytest.raises(ProjectError) as error:
        load_project(write(), "prod", environ={}).state_url()
    assert str(error.value.where) == "millrace.yaml:14:12"


def test_the_process_wins_over_dotenv(write):
    root = write()
    (root / ".env").write_text("SHOP_DB_URL=postgresql://from/dotenv\n")
    assert load_project(root, environ={}).connection_url("shop_db") == "postgresql://from/dotenv"
    environ = {"SHOP_DB_URL": "postgresql://from/process"}
    assert load_project(root, environ=environ).connection_url("shop_db") == "postgresql://from/process"
    with pytest.raises(ProjectError, match="variable SHOP_DB_URL is empty"):
        load_project(root, environ={"SHOP_DB_URL": ""}).connection_url("shop_db")


def test_a_password_in_a_url_is_encoded_and_hidden(write):
    url = "postgresql://shop:${env:PW_A}@localhost/shop"
    root = write({"millrace.yaml": ("${env:SHOP_DB_URL}", url)})
    project = load_project(root, environ={"PW_A": PASSWORD})
    found = project.connection_url("shop_db")
    assert found == "postgresql://shop:p%40ss%3A%2F%25%22@localhost/shop"
    assert PASSWORD not in redact(f"cannot connect with {PASSWORD} to {found}")
    assert "p%40ss" not in redact(found)
    assert PASSWORD not in repr(project)


def test_a_whole_url_is_taken_as_it_is(write):
    secret = "postgresql://u:Tr0ub4dor%26@h/d"
    project = load_project(write(), environ={"SHOP_DB_URL": secret})
    assert project.connection_url("shop_db") == secret
    assert redact("Tr0ub4dor& and Tr0ub4dor%26") == "*** and ***"


def test_files(write):
    root = write({"millrace.yaml": ("${env:SHOP_DB_URL}", "postgresql://u:${file:secrets/pw}@h/d")})
    project = load_project(root, environ={})
    with pytest.raises(ProjectError, match="file secrets/pw cannot be read: No such file"):
        project.connection_url("shop_db")
    (root / "secrets").mkdir()
    (root / "secrets/pw").write_text("geheim!x\n")
    assert project.connection_url("shop_db") == "postgresql://u:geheim%21x@h/d"


def test_a_password_in_the_file_is_refused_and_not_shown(write):
    for url in (f"postgresql://u:{PASSWORD.replace(chr(34), '')}@h/d", "postgresql://h/d?password=hunter2"):
        root = write({"millrace.yaml": ("${env:SHOP_DB_URL}", url)})
        with pytest.raises(ProjectError) as error:
            load_project(root, environ={})
        text = str(error.value)
        assert text.startswith("the password of url of connection shop_db of environment dev stands in the file")
        assert "hunter2" not in text
        assert "p@ss" not in text
        assert "***" in text


@pytest.mark.parametrize(
    "line",
    [
        '{tpye: postgres, url: "postgresql://u:hunter2@h/d"}',
        "{tpye: postgres, password: hunter2}",
        '{tpye: postgres, url: "host=h password=hunter2 user=u"}',
        "{tpye: postgres, url: 'postgresql://u:a@hunter2:/@h/d'}",
    ],
)
def test_a_wrong_line_does_not_show_the_secret_on_it(write, line):
    root = write({"millrace.yaml": ('{type: postgres, url: "${env:SHOP_DB_URL}"}', line)})
    with pytest.raises(ProjectError) as error:
        load_project(root, environ={})
    assert "hunter2" not in str(error.value)
    assert 'unknown key "tpye"' in str(error.value)
    (wrong,) = [one for one in (error.value, *error.value.others) if "tpye" in one.what]
    shown, mark = wrong.detail
    assert shown[mark.index("^") : mark.rindex("^") + 1] == "tpye"


def test_a_store_of_secrets_is_asked_only_when_used(write):
    root = write({"millrace.yaml": ("${env:STATE_URL}", "${vault:kv/state}")})
    assert load_project(root, environ={}).state_url() is None
    with pytest.raises(ProjectError, match="VAULT_ADDR is not set, which secret kv/state of Vault needs; the state"):
        load_project(root, "prod", environ={}).state_url()


def test_an_unknown_connection(write):
    with pytest.raises(NotFound) as error:
        load_project(write(), environ={}).connection("shop")
    assert error.value.hint == 'did you mean "shop_db"?'
