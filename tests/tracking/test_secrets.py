import shlex
from itertools import product
from urllib.parse import quote

import pytest

from experiment.options import typed
from tracking import secrets
from tracking.secrets import hidden, remember, without_password

PASSWORDS = (
    "s3hush",
    "s3 hush",
    "s3'hush",
    's3"hush',
    "s3`hush",
    "s3/hush",
    "s3@hush",
    "s3?hush",
    "s3&hush",
    "s3:hush",
)
PLACES = ("postgresql://me:{}@db/o", "https://me:{}@server/path", "postgresql://db/o?user=me&password={}")
NAMES = ("token", "sslpassword", "passwd", "PASSWORD", "api_key", "secret", "auth", "sslkey")
FORMS = [
    *(place.format(password) for place, password in product(PLACES[:2], PASSWORDS)),
    *(place.format(quote(password, safe="")) for place, password in product(PLACES, PASSWORDS)),
    *(f"https://server/path?{name}=s3hush" for name in NAMES),
    "http://s3hush-s3hush@server",
]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", {})


@pytest.mark.parametrize("address", FORMS)
def test_a_secret_is_in_no_command_no_message_and_no_link(address: str) -> None:
    assert "hush" not in hidden(address)
    for words in (["--storage", address], [f"--storage={address}"]):
        assert "hush" not in typed("tune.py", [*words, "--trials", "3"])
    remember(address)
    login = address.partition("://")[2].rpartition("@")[0].partition(":")[2]
    for text in (f"cannot connect to {address}: refused", shlex.quote(address), f"login {login} failed", repr(address)):
        assert "hush" not in without_password(text), text


def test_an_address_that_is_not_known_is_hidden_too() -> None:
    text = without_password("see postgresql://me:s3hush@db/o?token=s3hush and http://other/path")
    assert text == "see postgresql://***@db/o?token=*** and http://other/path"


@pytest.mark.parametrize(
    "address", ["sqlite:////a/mlflow.db", "http://127.0.0.1:5000", "postgresql://db/o?sslmode=require"]
)
def test_an_address_without_a_secret_stays_as_it_is(address: str) -> None:
    remember(address)
    assert hidden(address) == without_password(f"{address}") == address
